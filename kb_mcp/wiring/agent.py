"""Building wing A: billing over the network, or with a proxy embedded in this process.

Floor: wiring. Embedded, the Stripe key lies in the agent's own process: for trying out, and for
one person's machine. A vault key may lie in AWS Secrets Manager: boto3 brings botocore, which
Lambda's own runtimes have, and the extra `aws`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

from kb_mcp.agent.billing import Billing, KeySource
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.line import InProcessLine, Line
from kb_mcp.agent.client.network import NetworkLine, Trust, TrustError
from kb_mcp.settings import Secret, Settings, SettingsError, load_settings, read_token

if TYPE_CHECKING:
    from kb_mcp.in_process import AsgiApp

logger = logging.getLogger(__name__)


def fetch_token(address: str, variable: str) -> str:
    """Return the vault key's token that AWS Secrets Manager holds at `address` now.

    `address` is `ARN:json-key:version-stage:version-id`, the form that ECS takes; of the last three
    any may be missing. The ARN has seven parts, of which the fourth is the secret's own region.
    Source: docs.aws.amazon.com/AmazonECS, "Pass Secrets Manager secrets through environment
    variables".
    Raises: SettingsError, which names `variable` and never shows what was fetched.
    """
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        hint = "Install kb-mcp-billing[aws]."
        raise SettingsError(variable, "is an ARN, and boto3 is not here", hint) from None
    parts = address.split(":")
    member, stage, version = [*parts[7:], "", "", ""][:3]
    wanted = {"SecretId": ":".join(parts[:7]), "VersionStage": stage, "VersionId": version}
    session: Any = botocore.session.get_session()
    try:
        client = session.create_client("secretsmanager", region_name=parts[3] or None)
        found = client.get_secret_value(**{name: text for name, text in wanted.items() if text})
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an error")
        problem = f"names a secret that Secrets Manager refuses ({code})"
        hint = "Check the ARN, and secretsmanager:GetSecretValue in this role's policy."
        raise SettingsError(variable, problem, hint) from None
    except BotoCoreError as error:
        problem = f"names a secret that cannot be fetched ({type(error).__name__})"
        hint = "Check region, credentials and network of this process."
        raise SettingsError(variable, problem, hint) from None
    text = found.get("SecretString")
    if text is None:
        text = found.get("SecretBinary", b"").decode(errors="replace")
    try:
        return read_token(text, variable, member or None)
    except SettingsError as error:
        raise SettingsError(variable, f"names a secret that {error.problem}", error.hint) from None


def connect_billing(settings: Settings | None = None) -> Billing:
    """Return the tools' billing, over KEYBRAKE_PROXY_URL or with a proxy in this process.

    That proxy has a thread of its own, and is stopped when the process ends. Without `settings`
    the environment is read.
    Raises: SettingsError, StoreError, BindingError, SchemaError, AddressError.
    """
    settings = load_settings() if settings is None else settings
    if settings.proxy_url is not None:
        return _billing(settings, network_line(settings, settings.proxy_url))
    from kb_mcp.in_process import start_loop

    opened = _embedded(settings)
    loop, stop_loop = start_loop()
    try:
        app = asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
    except BaseException:
        stop_loop()
        raise

    line = InProcessLine(app, loop)

    def end() -> None:
        if line.is_forked:
            return
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
        stop_loop()

    atexit.register(end)
    return _billing(settings, line)


@asynccontextmanager
async def open_billing(settings: Settings) -> AsyncIterator[Billing]:
    """Do the same for a caller with an event loop, which is then the proxy's in this process too.

    Raises: as `connect_billing`.
    """
    if settings.proxy_url is not None:
        with closing(_billing(settings, network_line(settings, settings.proxy_url))) as billing:
            yield billing
        return
    async with _embedded(settings) as app:
        yield _billing(settings, InProcessLine(app))


def _billing(settings: Settings, line: Line) -> Billing:
    keys: Mapping[ToolName, KeySource] | KeySource = held_keys(settings)
    if not keys and settings.vault_key is not None:
        keys = key_source(settings.vault_key)
    if not keys:
        logger.warning(
            "No vault key is set, so no tool is offered. Set KEYBRAKE_VAULT_KEY_BILLING for "
            "charge, KEYBRAKE_VAULT_KEY_AUDIT for charge_status, or KEYBRAKE_VAULT_KEY for both."
        )
    return Billing(
        keys, line, charge_api=settings.charge_api, allow_reference=settings.allow_reference
    )


def network_line(settings: Settings, proxy_url: str) -> NetworkLine:
    """Return the line to `proxy_url`. Raises: SettingsError, AddressError."""
    return NetworkLine(
        proxy_url,
        allow_http=settings.allow_http,
        trust=trust_of(settings),
        jitter=secrets.randbelow,
    )


def trust_of(settings: Settings) -> Trust:
    """Return whose certificates are believed over the network. Raises: SettingsError."""
    trust = Trust(settings.ca_file, settings.cert_file, settings.cert_dir)
    try:
        trust.check_ca_file()
    except TrustError as error:
        hint = "Set a file of certificates, in PEM."
        raise SettingsError("KEYBRAKE_CA_FILE", "holds no certificates", hint) from error
    return trust


@asynccontextmanager
async def _embedded(settings: Settings) -> AsyncIterator[AsgiApp]:
    """Run a proxy on this event loop until the block ends."""
    try:
        from kb_mcp.serving.tracing import traced
        from kb_mcp.wiring.proxy import Proxy
    except ModuleNotFoundError as missing:
        # The deployment zip for Lambda carries wing A alone (locks/lambda.txt).
        variable, said = "KEYBRAKE_PROXY_URL", "is not set, and"
        if settings.embedded:
            variable, said = "KEYBRAKE_EMBEDDED", "is set, but"
        hint = (
            "Set KEYBRAKE_PROXY_URL to a proxy that runs elsewhere, or deploy a zip or image of "
            "your own made by `pip install kb-mcp-billing`."
        )
        problem = f"{said} what is deployed here holds no proxy"
        raise SettingsError(variable, problem, hint) from missing

    proxy = Proxy(settings)
    await proxy.start()
    try:
        yield traced(proxy.app, proxy.span)
    finally:
        await proxy.stop()


def held_keys(settings: Settings) -> Mapping[ToolName, KeySource]:
    """Return the vault keys that were configured, by the tool each serves."""
    configured = {
        ToolName.CHARGE: settings.vault_key_billing,
        ToolName.CHARGE_STATUS: settings.vault_key_audit,
        ToolName.REFUND: settings.vault_key_refunds,
    }
    return {tool: key_source(secret) for tool, secret in configured.items() if secret is not None}


def key_source(secret: Secret) -> KeySource:
    """Return where a vault key comes from: itself, its file, or AWS Secrets Manager.

    It is read again when the proxy refuses it; what is no vault key is never sent as one.
    """

    def read() -> str:
        text = secret.reread().reveal()
        found = fetch_token if text.startswith("arn:") else read_token
        return found(text, secret.variable)

    return read
