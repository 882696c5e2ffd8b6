"""A vault key in AWS Secrets Manager, fetched when it is first needed and when it is refused.

Floor: wiring. boto3 brings botocore: Lambda's own runtimes have it, and the extra `aws`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from kb_mcp.settings import SettingsError, read_token


@dataclass(frozen=True, slots=True)
class SecretAddress:
    """An ARN, and which part of which version of the secret is meant; empty means any."""

    arn: str
    member: str = ""
    stage: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split `ARN:json-key:version-stage:version-id`, the form that ECS takes.

        Source: docs.aws.amazon.com/AmazonECS, "Pass Secrets Manager secrets through environment
        variables". The ARN itself has seven parts.
        """
        parts = text.split(":")
        more = [*parts[7:], "", "", ""]
        return cls(":".join(parts[:7]), more[0], more[1], more[2])

    @property
    def region(self) -> str | None:
        """The secret's own region, which need not be the function's."""
        return self.arn.split(":")[3] or None


def fetch_token(address: SecretAddress, variable: str) -> str:
    """Return the vault key's token that the secret holds now.

    Raises: SettingsError, which names `variable` and never shows what was fetched.
    """
    answer = _fetch(address, variable)
    text = answer.get("SecretString")
    if text is None:
        text = answer.get("SecretBinary", b"").decode(errors="replace")
    try:
        return read_token(text, variable, address.member or None)
    except SettingsError as error:
        raise SettingsError(variable, f"names a secret that {error.problem}", error.hint) from None


def _fetch(address: SecretAddress, variable: str) -> dict[str, Any]:
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        hint = "Install kb-mcp-billing[aws]."
        raise SettingsError(variable, "is an ARN, and boto3 is not here", hint) from None
    wanted = {"VersionStage": address.stage, "VersionId": address.version}
    try:
        client: Any = botocore.session.get_session().create_client(
            "secretsmanager", region_name=address.region
        )
        found = client.get_secret_value(
            SecretId=address.arn, **{name: value for name, value in wanted.items() if value}
        )
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        problem = f"names a secret that Secrets Manager refuses ({code})"
        hint = "Check the ARN, and secretsmanager:GetSecretValue in this role's policy."
        raise SettingsError(variable, problem, hint) from None
    except BotoCoreError as error:
        problem = f"names a secret that cannot be fetched ({type(error).__name__})"
        hint = "Check region, credentials and network of this process."
        raise SettingsError(variable, problem, hint) from None
    return dict(found)
