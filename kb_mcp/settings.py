"""The settings: the environment and the files it names, read into one frozen value.

Floor: above environment and money, below the wings. The only module that may read `os.environ`.
Each variable's meaning stands in docs/settings.md.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import platformdirs

from kb_mcp.environment import PREFIX, Environment, Secret, SettingsError
from kb_mcp.money import Money, parse_cap

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Secret", "Settings", "SettingsError", "load_settings"]

UpstreamMode = Literal["sandbox", "test", "live"]
ChargeApi = Literal["charges", "payment_intents"]

STRIPE_API_BASE: Final = "https://api.stripe.com"
SANDBOX_KEY: Final = "rk_test_sandbox"
# With the wait for another caller (10 s) and for a turn (5 s) below the 60 s that the tools wait.
UPSTREAM_TIMEOUT_MS_MAX: Final = 40_000


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may be set from outside. Times end in `_ms`, None means not set.

    However it is made, it is consistent: `__post_init__` refuses combinations that risk money.
    """

    database_url: str = field(repr=False)  # may hold a password
    stripe_key: Secret | None = None
    stripe_api_base: str | None = None
    account: str | None = None
    allow_unrestricted_key: bool = False
    allow_http: bool = False
    proxy_url: str | None = None
    embedded: bool = False
    vault_key_billing: Secret | None = None
    vault_key_audit: Secret | None = None
    vault_key_refunds: Secret | None = None
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
        _check_upstream(self)
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
    def account_label(self) -> str:
        """The name the store is bound to: `KEYBRAKE_ACCOUNT`, else the mode."""
        return self.account or self.upstream_mode

    @property
    def database_path(self) -> Path | None:
        """The SQLite file; None with PostgreSQL."""
        if not self.database_url.startswith(_SQLITE):
            return None
        return Path(self.database_url.removeprefix(_SQLITE))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`, or from the process's environment.

    Raises: SettingsError, at the first variable that cannot be meant.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251 - this module is the one reader of the environment
    _check_names(environ)
    source = Environment(environ)
    database = source.secret("DATABASE_URL")
    return Settings(
        database_url=_database_url(database),
        stripe_key=_stripe_key(source.secret("STRIPE_KEY")),
        stripe_api_base=source.url("STRIPE_API_BASE", path=False),
        account=source.name("ACCOUNT"),
        allow_unrestricted_key=source.flag("ALLOW_UNRESTRICTED_KEY"),
        allow_http=source.flag("ALLOW_HTTP"),
        proxy_url=source.url("PROXY_URL"),
        embedded=source.flag("EMBEDDED"),
        vault_key_billing=_vault_key(source.secret("VAULT_KEY_BILLING")),
        vault_key_audit=_vault_key(source.secret("VAULT_KEY_AUDIT")),
        vault_key_refunds=_vault_key(source.secret("VAULT_KEY_REFUNDS")),
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


_SQLITE = "sqlite:///"
_COLLECTOR = ("ENDPOINT", "TRACES_ENDPOINT")  # read in full by OpenTelemetry itself
_SECRETS = frozenset(
    "DATABASE_URL STRIPE_KEY VAULT_KEY_BILLING VAULT_KEY_AUDIT VAULT_KEY_REFUNDS "
    "ADMIN_TOKEN MASTER_KEY".split()
)
_PLAIN = frozenset(
    "STRIPE_API_BASE ACCOUNT ALLOW_UNRESTRICTED_KEY ALLOW_HTTP PROXY_URL EMBEDDED CHARGE_API "
    "ALLOW_REFERENCE ALLOWED_HOSTS PUBLIC_URL ACCOUNT_DAILY_CAP ACCOUNT_DAILY_REFUND_CAP "
    "UPSTREAM_TIMEOUT RECOVERY_INTERVAL RECOVERY_GRACE NODE_ID CLOCK_OFFSET".split()
)
_KNOWN = frozenset(
    {PREFIX + name for name in _SECRETS | _PLAIN} | {f"{PREFIX}{name}_FILE" for name in _SECRETS}
)
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_STRIPE_KEY = re.compile(r"(?:rk|sk)_(?:test|live)_[A-Za-z0-9_]+")
_VAULT_KEY = re.compile(r"vk_(?:test|live)_[A-Za-z0-9_-]+|arn:aws[a-z-]*:secretsmanager:\S+")
_MASTER_KEY_CHARACTERS_MIN = 16


def _check_names(environ: Mapping[str, str]) -> None:
    # A typo in KEYBRAKE_ACCOUNT_DAILY_CAP would otherwise be a ceiling that is not there.
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in _KNOWN:
            name = variable.removeprefix(PREFIX)
            close = difflib.get_close_matches(name, [k.removeprefix(PREFIX) for k in _KNOWN], n=1)
            hint = f"Did you mean {PREFIX}{close[0]}?" if close else "docs/settings.md lists all."
            raise SettingsError(variable, "is not a setting", hint)


def _database_url(secret: Secret | None) -> str:
    if secret is None:
        return f"{_SQLITE}{platformdirs.user_data_path('kb-mcp', appauthor=False)}/keybrake.db"
    return secret.reveal()


def _stripe_key(secret: Secret | None) -> Secret | None:
    if secret is not None and not _STRIPE_KEY.fullmatch(secret.reveal()):
        hint = "Set a restricted key, rk_test_… or rk_live_…, or leave it out for the sandbox."
        raise SettingsError(secret.variable, "is not a Stripe API key", hint)
    return secret


def _vault_key(secret: Secret | None) -> Secret | None:
    if secret is not None and not _VAULT_KEY.fullmatch(secret.reveal()):
        hint = "Set a token from `kb-mcp keys issue` (vk_…) or a Secrets Manager ARN."
        raise SettingsError(secret.variable, "is not a vault key", hint)
    return secret


def _master_key(secret: Secret | None) -> Secret | None:
    if secret is not None and len(secret.reveal()) < _MASTER_KEY_CHARACTERS_MIN:
        hint = f"Set {_MASTER_KEY_CHARACTERS_MIN} random characters or more."
        raise SettingsError(secret.variable, "is too short to seal anything", hint)
    return secret


def _charge_api(value: str | None) -> ChargeApi:
    match value:
        case None | "charges":
            return "charges"
        case "payment_intents":
            return "payment_intents"
        case _:
            hint = "Set charges or payment_intents."
            raise SettingsError("KEYBRAKE_CHARGE_API", "is not an API we charge through", hint)


def _allowed_hosts(value: str | None) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in value.split(",")) if value else ()
    if not all(_HOST.fullmatch(host) for host in hosts):
        hint = "Set hosts with or without port, comma-separated; wildcards would undo the check."
        raise SettingsError("KEYBRAKE_ALLOWED_HOSTS", "holds something else than hosts", hint)
    return hosts


def _caps(source: Environment, name: str) -> tuple[Money, ...]:
    value, variable = source.text(name), PREFIX + name
    try:
        caps = tuple(parse_cap(part.strip()) for part in value.split(",")) if value else ()
    except ValueError:
        hint = "Set one amount per currency, for example 50000.00usd,40000.00eur."
        raise SettingsError(variable, "holds no cap", hint) from None
    if len({cap.currency for cap in caps}) != len(caps):
        problem, hint = "names a currency twice", "Set one amount per currency."
        raise SettingsError(variable, problem, hint)
    return caps


def _check_upstream(settings: Settings) -> None:
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
    addresses = {
        "KEYBRAKE_STRIPE_API_BASE": settings.stripe_api_base,
        "KEYBRAKE_PROXY_URL": settings.proxy_url,
        "KEYBRAKE_PUBLIC_URL": settings.public_url,
    }
    for variable, address in addresses.items():
        if address and not settings.allow_http and not _is_private_line(address):
            hint = "Set an https address, or KEYBRAKE_ALLOW_HTTP=1 inside a network you trust."
            raise SettingsError(variable, "is plain http beyond this machine", hint)
    if settings.on_lambda and settings.proxy_url is None and not settings.embedded:
        hint = "Set it to your proxy, or KEYBRAKE_EMBEDDED=1 to give each environment a ledger."
        raise SettingsError("KEYBRAKE_PROXY_URL", "is not set, on Lambda", hint)
    if settings.proxy_url is not None and settings.embedded:
        hint = "Set one of them."
        raise SettingsError("KEYBRAKE_EMBEDDED", "is set beside KEYBRAKE_PROXY_URL", hint)


def _is_private_line(address: str) -> bool:
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_store(settings: Settings) -> None:
    url = settings.database_url
    if settings.database_path is None:
        if not url.startswith("postgresql://"):
            hint = "Set sqlite:///PATH or postgresql://…."
            raise SettingsError("KEYBRAKE_DATABASE_URL", "is not a store we know", hint)
        if settings.master_key is None:
            hint = "Set the same random 32 characters or more on every host."
            raise SettingsError("KEYBRAKE_MASTER_KEY", "is not set, with PostgreSQL", hint)
    elif url.removeprefix(_SQLITE) in {"", ":memory:"}:
        hint = "Name a file: a ledger in memory forgets what it charged."
        raise SettingsError("KEYBRAKE_DATABASE_URL", "names no file", hint)
    if settings.clock_offset_ms and (
        settings.database_path is None or settings.upstream_mode == "live"
    ):
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
