"""The settings: the environment and the files it names, read into one frozen value.

Floor: above environment and money, below the wings. The only module that may read `os.environ`.
Each variable's meaning stands in docs/settings.md.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from kb_mcp.environment import (
    PREFIX,
    SQLITE,
    Environment,
    Secret,
    SecretForm,
    SettingsError,
    check_absolute,
    check_replaced,
    data_folder,
    expand_home,
    is_private_line,
)
from kb_mcp.money import Money, MoneyError, parse_caps

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Secret", "Settings", "SettingsError", "load_settings"]

UpstreamMode = Literal["sandbox", "test", "live"]
ChargeApi = Literal["charges", "payment_intents"]

FILE_NAME: Final = "keybrake.db"
STRIPE_API_BASE: Final = "https://api.stripe.com"
SANDBOX_KEY: Final = "rk_test_sandbox"
MASTER_KEY_CHARACTERS_NEW: Final = 32
# With the wait for another caller (10 s) and for a turn (5 s) below the 60 s that the tools wait.
UPSTREAM_TIMEOUT_MS_MAX: Final = 40_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may be set from outside. Times end in `_ms`, None means not set.

    However it is made, it is consistent: `__post_init__` refuses combinations that risk money.
    """

    # It may hold a password. None: the file in the user's own data folder.
    database_url: str | None = field(repr=False)
    stripe_key: Secret | None = None
    stripe_api_base: str | None = None
    account: str | None = None
    allow_unrestricted_key: bool = False
    allow_http: bool = False
    proxy_url: str | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None  # SSL_CERT_FILE
    cert_dir: Path | None = None  # SSL_CERT_DIR
    embedded: bool = False
    vault_key: Secret | None = None
    vault_key_billing: Secret | None = None
    vault_key_audit: Secret | None = None
    vault_key_refunds: Secret | None = None
    oauth_issuers: tuple[str, ...] = ()
    oauth_audience: str | None = None
    charge_api: ChargeApi = "charges"
    allow_reference: bool = False
    admin_token: Secret | None = None
    master_key: Secret | None = None
    allowed_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    account_daily_cap: tuple[Money, ...] = ()
    account_daily_refund_cap: tuple[Money, ...] = ()
    upstream_timeout_ms: int = 25_000
    recovery_interval_ms: int = 15_000
    recovery_grace_ms: int = 600_000
    node_id: str | None = None
    clock_offset_ms: int = 0
    on_lambda: bool = False
    export_traces: bool = False

    def __post_init__(self) -> None:
        """Refuse combinations. Raises: SettingsError."""
        check_upstream(self)
        _check_reach(self)
        _check_store(self)
        _check_times(self)

    @property
    def upstream_mode(self) -> UpstreamMode:
        """What the upstream key reaches; without a key, the sandbox."""
        if self.stripe_key is None or self.stripe_key.reveal() == SANDBOX_KEY:
            return "sandbox"
        return "live" if "_live_" in self.stripe_key.reveal() else "test"

    @property
    def upstream_base(self) -> str | None:
        """The address requests go to; None is the sandbox inside this process."""
        if self.upstream_mode == "sandbox":
            return self.stripe_api_base
        return self.stripe_api_base or STRIPE_API_BASE

    @property
    def oauth_resource(self) -> str | None:
        """What tokens must be meant for: the audience, else the public address and `/mcp`."""
        if self.oauth_audience is not None or self.public_url is None:
            return self.oauth_audience
        return f"{self.public_url}/mcp"

    @property
    def oauth_address(self) -> str | None:
        """The address of `/mcp` that OAuth clients are told; None where none is known."""
        resource = self.oauth_resource
        if resource is not None and resource.startswith(("https://", "http://")):
            return resource
        return None if self.public_url is None else f"{self.public_url}/mcp"

    def may_reach(self, address: str) -> bool:
        """Say whether an address is https, or on this machine, or plain http is allowed."""
        return self.allow_http or is_private_line(address)

    @property
    def account_label(self) -> str:
        """The name the store is bound to: `KEYBRAKE_ACCOUNT`, else the mode."""
        return self.account or self.upstream_mode

    @property
    def postgres_url(self) -> str | None:
        """The address of the PostgreSQL store; None with SQLite."""
        url = self.database_url
        return None if url is None or url.startswith(SQLITE) else url

    @property
    def database_path(self) -> Path | None:
        """The SQLite file; None with PostgreSQL.

        Raises: SettingsError, where no file is named and this user has no folder for one.
        """
        if self.postgres_url is not None:
            return None
        if self.database_url is None:
            return data_folder() / FILE_NAME
        return Path(self.database_url.removeprefix(SQLITE))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`, or from the process's environment.

    Raises: SettingsError, at the first variable that is not valid.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251 - this module is the one reader of the environment
    _check_names(environ)
    source = Environment(environ)
    database = source.secret("DATABASE_URL", partial(_database_text, environ), references=True)
    return Settings(
        database_url=None if database is None else database.reveal(),
        stripe_key=source.secret("STRIPE_KEY", _STRIPE_KEY.read),
        stripe_api_base=source.url("STRIPE_API_BASE", path=False),
        account=source.name("ACCOUNT"),
        allow_unrestricted_key=source.flag("ALLOW_UNRESTRICTED_KEY"),
        allow_http=source.flag("ALLOW_HTTP"),
        proxy_url=source.url("PROXY_URL"),
        ca_file=_ca_file(source.text("CA_FILE", references=True), environ),
        cert_file=Path(file) if (file := environ.get("SSL_CERT_FILE")) else None,
        cert_dir=Path(folder) if (folder := environ.get("SSL_CERT_DIR")) else None,
        embedded=source.flag("EMBEDDED"),
        vault_key=source.secret("VAULT_KEY", read_vault_key),
        vault_key_billing=source.secret("VAULT_KEY_BILLING", read_vault_key),
        vault_key_audit=source.secret("VAULT_KEY_AUDIT", read_vault_key),
        vault_key_refunds=source.secret("VAULT_KEY_REFUNDS", read_vault_key),
        oauth_issuers=source.addresses("OAUTH_ISSUERS"),
        oauth_audience=source.text("OAUTH_AUDIENCE"),
        charge_api=_charge_api(source.text("CHARGE_API")),
        allow_reference=source.flag("ALLOW_REFERENCE"),
        admin_token=source.secret("ADMIN_TOKEN"),
        master_key=_master_key(source.secret("MASTER_KEY")),
        allowed_hosts=_allowed_hosts(source.text("ALLOWED_HOSTS")),
        public_url=source.url("PUBLIC_URL"),
        account_daily_cap=_caps(source, "ACCOUNT_DAILY_CAP"),
        account_daily_refund_cap=_caps(source, "ACCOUNT_DAILY_REFUND_CAP"),
        upstream_timeout_ms=source.seconds("UPSTREAM_TIMEOUT", default="25"),
        recovery_interval_ms=source.seconds("RECOVERY_INTERVAL", default="15"),
        recovery_grace_ms=source.seconds("RECOVERY_GRACE", default="600"),
        node_id=source.name("NODE_ID"),
        clock_offset_ms=source.seconds("CLOCK_OFFSET", default="0", signed=True),
        on_lambda=bool(environ.get("AWS_LAMBDA_FUNCTION_NAME")),
        export_traces=any(environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in _COLLECTOR),
    )


_COLLECTOR = ("ENDPOINT", "TRACES_ENDPOINT")  # read in full by OpenTelemetry itself
_SECRETS = {field.name for field in fields(Settings) if "Secret" in field.type} | {"database_url"}
_KNOWN = {
    PREFIX + name.removesuffix("_ms").upper()
    for field in fields(Settings)
    for name in ((field.name, f"{field.name}_file") if field.name in _SECRETS else (field.name,))
} - {PREFIX + name for name in ("CERT_FILE", "CERT_DIR", "ON_LAMBDA", "EXPORT_TRACES")}
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_STRIPE_KEY = SecretForm(
    re.compile(r"(?:rk|sk)_(?:test|live)_[A-Za-z0-9_]+"),
    "a Stripe API key",
    "Set a restricted key, rk_test_… or rk_live_…, or leave it out for the sandbox.",
)
# Of a service named keybrake, or keybrake-something, Kubernetes tells every pod of its namespace.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)
# A vault key, or a token of an identity provider that stands for one.
_TOKEN = SecretForm(
    re.compile(r"vk_(?:test|live)_[A-Za-z0-9_-]+|ey[\w-]+\.[\w-]+\.[\w-]+", re.ASCII),
    "a vault key",
    "Store a token from `kb-mcp keys issue` (vk_…) or a JWT of your identity provider, alone or as "
    "one text of a JSON object; the variable may also hold a Secrets Manager ARN, or ARN:NAME:: "
    "for one of several.",
)
# arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, then :json-key:version-stage:version-id.
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[\w-]*:\w*:secret:[^:\s]+(?::[^:\s]*){0,3}")
# A new store asks for more (MASTER_KEY_CHARACTERS_NEW); what is there must stay readable.
_MASTER_KEY_CHARACTERS_MIN = 16


def _check_names(environ: Mapping[str, str]) -> None:
    # A typo in KEYBRAKE_ACCOUNT_DAILY_CAP would otherwise be a ceiling that is not there.
    for variable in sorted(environ):
        unknown = variable.startswith(PREFIX) and variable not in _KNOWN
        if unknown and not _SERVICE_LINK.fullmatch(variable):
            name = variable.removeprefix(PREFIX)
            close = difflib.get_close_matches(name, [k.removeprefix(PREFIX) for k in _KNOWN], n=1)
            hint = f"Did you mean {PREFIX}{close[0]}?" if close else "docs/settings.md lists all."
            raise SettingsError(variable, "is not a setting", hint)


def _database_text(environ: Mapping[str, str], text: str, variable: str) -> str:
    if not text.startswith(SQLITE):
        check_replaced(text, variable)
        return text
    return SQLITE + expand_home(text.removeprefix(SQLITE), variable, environ)


def _ca_file(value: str | None, environ: Mapping[str, str]) -> Path | None:
    if value is None:
        return None
    variable = "KEYBRAKE_CA_FILE"
    path = Path(expand_home(value, variable, environ))
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        problem = f"names a file that cannot be read ({error.strerror})"
        raise SettingsError(variable, problem, "Set a file of certificates, in PEM.") from None


def read_vault_key(text: str, variable: str) -> str:
    """Return the token in `text`, or the Secrets Manager ARN that it is.

    Raises: SettingsError, which names `variable`.
    """
    if _ARN.fullmatch(text.strip("\"'\r\n ")):
        return text.strip("\"'\r\n ")
    return read_token(text, variable)


def read_token(text: str, variable: str, member: str | None = None) -> str:
    """Return the vault key's token in `text`, in the JSON member `member` if one is named.

    Raises: SettingsError, which names `variable`.
    """
    return _TOKEN.read(text, variable, member)


def _master_key(secret: Secret | None) -> Secret | None:
    if secret is not None and len(secret.reveal()) < _MASTER_KEY_CHARACTERS_MIN:
        hint = f"Set {MASTER_KEY_CHARACTERS_NEW} random characters or more."
        raise SettingsError(secret.variable, "is too short to seal anything", hint)
    return secret


def _charge_api(value: str | None) -> ChargeApi:
    if value in {None, "charges"}:
        return "charges"
    if value == "payment_intents":
        return "payment_intents"
    hint = "Set charges or payment_intents."
    raise SettingsError("KEYBRAKE_CHARGE_API", "is not an API we charge through", hint)


def _allowed_hosts(value: str | None) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in value.split(",")) if value else ()
    if not all(_HOST.fullmatch(host) for host in hosts):
        hint = "Set hosts with or without port, comma-separated; wildcards would undo the check."
        raise SettingsError("KEYBRAKE_ALLOWED_HOSTS", "holds something else than hosts", hint)
    return hosts


def _caps(source: Environment, name: str) -> tuple[Money, ...]:
    value = source.text(name)
    try:
        caps = parse_caps(value) if value else {}
    except MoneyError as error:
        hint = f"{error} Set one amount per currency, for example 50000.00usd,40000.00eur."
        raise SettingsError(PREFIX + name, "holds no caps", hint) from None
    return tuple(Money(amount, currency) for currency, amount in caps.items())


def check_upstream(settings: Settings) -> None:
    """Check that the upstream key may be used with its address. Raises: SettingsError."""
    key, base = settings.stripe_key, settings.stripe_api_base
    if key is None:
        if base is not None:
            hint = f"Set KEYBRAKE_STRIPE_KEY too ({SANDBOX_KEY} for a sandbox)."
            raise SettingsError("KEYBRAKE_STRIPE_API_BASE", "is set without a key", hint)
        return
    if key.reveal().startswith("sk_") and not settings.allow_unrestricted_key:
        hint = "Make a restricted key (rk_…), or set KEYBRAKE_ALLOW_UNRESTRICTED_KEY=1."
        raise SettingsError("KEYBRAKE_STRIPE_KEY", "is an unrestricted key", hint)
    if settings.upstream_mode == "live" and base not in {None, STRIPE_API_BASE}:
        hint = "Leave it out: a live key goes to Stripe's own host alone."
        raise SettingsError("KEYBRAKE_STRIPE_API_BASE", "is not Stripe's", hint)
    if settings.upstream_mode == "sandbox" and base == STRIPE_API_BASE:
        hint = "Leave it out, or set the sandbox's, for example http://127.0.0.1:8788."
        raise SettingsError("KEYBRAKE_STRIPE_API_BASE", "is Stripe's, with a sandbox key", hint)


def _check_reach(settings: Settings) -> None:
    addresses = [
        ("KEYBRAKE_STRIPE_API_BASE", settings.stripe_api_base),
        ("KEYBRAKE_PROXY_URL", settings.proxy_url),
        ("KEYBRAKE_PUBLIC_URL", settings.public_url),
        # Whoever changes an issuer's keys on the way is anybody.
        *(("KEYBRAKE_OAUTH_ISSUERS", issuer) for issuer in settings.oauth_issuers),
    ]
    for variable, address in addresses:
        if address and not settings.may_reach(address):
            hint = "Set an https address, or KEYBRAKE_ALLOW_HTTP=1 inside a network you trust."
            raise SettingsError(variable, "is plain http beyond this machine", hint)
    if settings.oauth_issuers and settings.oauth_resource is None:
        hint = "Set it to the address of /mcp that clients use, or set KEYBRAKE_PUBLIC_URL."
        raise SettingsError("KEYBRAKE_OAUTH_AUDIENCE", "is not set, but issuers are", hint)
    if settings.on_lambda and settings.proxy_url is None and not settings.embedded:
        hint = "Set it to your proxy, or KEYBRAKE_EMBEDDED=1 to give each environment a ledger."
        raise SettingsError("KEYBRAKE_PROXY_URL", "is not set, on Lambda", hint)
    if settings.proxy_url is not None and settings.embedded:
        hint = "Set one of them."
        raise SettingsError("KEYBRAKE_EMBEDDED", "is set beside KEYBRAKE_PROXY_URL", hint)


def _check_store(settings: Settings) -> None:
    url = settings.database_url
    if settings.postgres_url is not None:
        if not settings.postgres_url.startswith("postgresql://"):
            hint = "Set sqlite:///PATH or postgresql://…."
            raise SettingsError("KEYBRAKE_DATABASE_URL", "is not a store we know", hint)
        if settings.master_key is None:
            hint = "Set the same random 32 characters or more on every host."
            raise SettingsError("KEYBRAKE_MASTER_KEY", "is not set, with PostgreSQL", hint)
    elif url is not None:
        if url.removeprefix(SQLITE) in {"", ":memory:"}:
            hint = "Name a file: a ledger in memory forgets what it charged."
            raise SettingsError("KEYBRAKE_DATABASE_URL", "names no file", hint)
        check_absolute(url)
    real = settings.postgres_url is not None or settings.upstream_mode == "live"
    if settings.clock_offset_ms and real:
        hint = "Leave it out: it is for SQLite with the sandbox or a test-mode key."
        raise SettingsError("KEYBRAKE_CLOCK_OFFSET", "would turn a real clock", hint)


def _check_times(settings: Settings) -> None:
    if settings.upstream_timeout_ms > UPSTREAM_TIMEOUT_MS_MAX:
        hint = "Set 40 at most: the tools wait 60 seconds for an outcome, Stripe's SDKs 80."
        raise SettingsError("KEYBRAKE_UPSTREAM_TIMEOUT", "is more than callers wait", hint)
    # A send may last deadline + timeout; a void before that could void a charge under way.
    if settings.upstream_timeout_ms >= settings.recovery_grace_ms:
        hint = "Set KEYBRAKE_RECOVERY_GRACE well above KEYBRAKE_UPSTREAM_TIMEOUT."
        raise SettingsError("KEYBRAKE_RECOVERY_GRACE", "is below the upstream timeout", hint)
