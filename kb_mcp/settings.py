"""The settings: the environment and the files it names, read into one frozen value.

Floor: above environment and money, below the wings. The only module that may read `os.environ`.
Each variable's meaning stands in docs/settings.md.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from kb_mcp import environment
from kb_mcp.environment import SQLITE, Secret, SecretForm, SettingsError
from kb_mcp.money import Money, MoneyError, parse_caps

__all__ = ["Secret", "Settings", "SettingsError", "load_settings"]

UpstreamMode = Literal["sandbox", "test", "live"]
ChargeApi = Literal["charges", "payment_intents"]

PREFIX: Final = "KEYBRAKE_"
FILE_NAME: Final = "keybrake.db"
STRIPE_API_BASE: Final = "https://api.stripe.com"
SANDBOX_KEY: Final = "rk_test_sandbox"
MASTER_KEY_CHARACTERS_NEW: Final = 32
# A new store asks for more (MASTER_KEY_CHARACTERS_NEW); what is there must stay readable.
_MASTER_KEY_CHARACTERS_MIN = 16
# With the wait for another caller (10 s) and for a turn (5 s) below the 60 s that the tools wait.
UPSTREAM_TIMEOUT_MS_MAX: Final = 40_000

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_STRIPE_KEY = SecretForm(
    re.compile(r"(?:rk|sk)_(?:test|live)_[A-Za-z0-9_]+"),
    "a Stripe API key",
    "Set a restricted key, rk_test_… or rk_live_…, or leave it out for the sandbox.",
)
# A vault key, or a token of an identity provider that stands for one.
_TOKEN = SecretForm(
    re.compile(r"vk_(?:test|live)_[A-Za-z0-9_-]+|ey[\w-]+\.[\w-]+\.[\w-]+", re.ASCII),
    "a vault key",
    "Store a token from `kb-mcp keys issue` (vk_…) or a JWT of your identity provider, alone or as "
    "one text of a JSON object; the variable may also hold a Secrets Manager ARN, or ARN:NAME:: "
    "for one of several.",
)
read_token = _TOKEN.read
# arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, then :json-key:version-stage:version-id.
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[\w-]*:\w*:secret:[^:\s]+(?::[^:\s]*){0,3}")


def _vault_key(text: str, variable: str) -> str:
    """Return the token in `text`, or the Secrets Manager ARN that it is."""
    plain = text.strip("\"'\r\n ")
    return plain if _ARN.fullmatch(plain) else read_token(text, variable)


def _master_key(text: str, variable: str) -> str:
    if len(text) < _MASTER_KEY_CHARACTERS_MIN:
        hint = f"Set {MASTER_KEY_CHARACTERS_NEW} random characters or more."
        raise SettingsError(variable, "is too short to seal anything", hint)
    return text


def _database_url(text: str, variable: str, *, environ: Mapping[str, str]) -> str:
    if not text.startswith(SQLITE):
        environment.check_replaced(text, variable)
        return text
    return SQLITE + environment.expand_home(text.removeprefix(SQLITE), variable, environ)


def _ca_file(text: str, variable: str, *, environ: Mapping[str, str]) -> Path:
    path = Path(environment.expand_home(text, variable, environ))
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        problem = f"names a file that cannot be read ({error.strerror})"
        raise SettingsError(variable, problem, "Set a file of certificates, in PEM.") from None


def _charge_api(text: str, variable: str) -> str:
    if text not in get_args(ChargeApi):
        hint = "Set charges or payment_intents."
        raise SettingsError(variable, "is not an API we charge through", hint)
    return text


def _hosts(text: str, variable: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().lower() for host in text.split(","))
    if not all(_HOST.fullmatch(host) for host in hosts):
        hint = "Set hosts with or without port, comma-separated; wildcards would undo the check."
        raise SettingsError(variable, "holds something else than hosts", hint)
    return hosts


def _caps(text: str, variable: str) -> tuple[Money, ...]:
    try:
        caps = parse_caps(text)
    except MoneyError as error:
        hint = f"{error} Set one amount per currency, for example 50000.00usd,40000.00eur."
        raise SettingsError(variable, "holds no caps", hint) from None
    return tuple(Money(amount, currency) for currency, amount in caps.items())


@dataclass(frozen=True, slots=True)
class Variable:
    """How the variable of a setting is read, to what `read` makes of its text.

    A `secret` may stand in a file instead. With `home`, `read` also takes the environment, to put
    the home folder in its place.
    """

    read: Callable[..., Any]
    secret: bool = False
    home: bool = False

    def load(self, variable: str, environ: Mapping[str, str]) -> Any:
        """Return what `variable` says; None where it is not set. Raises: SettingsError."""
        read = partial(self.read, environ=environ) if self.home else self.read
        text = environment.read_variable(environ, variable, references=self.home)
        filed = f"{variable}_FILE"
        file = environment.read_variable(environ, filed) if self.secret else None
        if file is not None:
            if text is not None:
                raise SettingsError(variable, f"is set beside {filed}", "Set one of them.")
            return Secret("", variable, Path(file), read).reread()
        value = None if text is None else read(text, variable)
        return Secret(value, variable) if self.secret and value is not None else value


Name = Annotated[str | None, Variable(environment.plain_name)]
Flag = Annotated[bool, Variable(environment.flag)]
Address = Annotated[str | None, Variable(environment.address)]
VaultKey = Annotated[Secret | None, Variable(_vault_key, secret=True)]
Seconds = Annotated[int, Variable(environment.milliseconds)]
Ceiling = Annotated[tuple[Money, ...], Variable(_caps)]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may be set from outside. Times end in `_ms`, None means not set.

    However it is made, it is consistent: `__post_init__` refuses combinations that risk money.
    """

    # It may hold a password. None: the file in the user's own data folder.
    database_url: Annotated[str | None, Variable(_database_url, secret=True, home=True)] = field(
        repr=False
    )
    stripe_key: Annotated[Secret | None, Variable(_STRIPE_KEY.read, secret=True)] = None
    stripe_api_base: Annotated[str | None, Variable(environment.origin)] = None
    account: Name = None
    allow_unrestricted_key: Flag = False
    allow_http: Flag = False
    proxy_url: Address = None
    ca_file: Annotated[Path | None, Variable(_ca_file, home=True)] = None
    cert_file: Path | None = None  # SSL_CERT_FILE
    cert_dir: Path | None = None  # SSL_CERT_DIR
    embedded: Flag = False
    vault_key: VaultKey = None
    vault_key_billing: VaultKey = None
    vault_key_audit: VaultKey = None
    vault_key_refunds: VaultKey = None
    oauth_issuers: Annotated[tuple[str, ...], Variable(environment.addresses)] = ()
    oauth_audience: Annotated[str | None, Variable(environment.plain_text)] = None
    charge_api: Annotated[ChargeApi, Variable(_charge_api)] = "charges"
    allow_reference: Flag = False
    admin_token: Annotated[Secret | None, Variable(environment.plain_text, secret=True)] = None
    master_key: Annotated[Secret | None, Variable(_master_key, secret=True)] = None
    allowed_hosts: Annotated[tuple[str, ...], Variable(_hosts)] = ()
    public_url: Address = None
    account_daily_cap: Ceiling = ()
    account_daily_refund_cap: Ceiling = ()
    upstream_timeout_ms: Seconds = 25_000
    recovery_interval_ms: Seconds = 15_000
    recovery_grace_ms: Seconds = 600_000
    node_id: Name = None
    clock_offset_ms: Annotated[int, Variable(partial(environment.milliseconds, signed=True))] = 0
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
        return self.allow_http or environment.is_private_line(address)

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
            return environment.data_folder() / FILE_NAME
        return Path(self.database_url.removeprefix(SQLITE))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`, or from the process's environment.

    Raises: SettingsError, at the first variable that is not valid.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251 - this module is the one reader of the environment
    _check_names(environ)
    read = {name: each.load(_named(name), environ) for name, each in _VARIABLES.items()}
    found = {name: value for name, value in read.items() if value is not None}
    database = found.pop("database_url", None)
    return Settings(
        database_url=None if database is None else database.reveal(),
        cert_file=Path(file) if (file := environ.get("SSL_CERT_FILE")) else None,
        cert_dir=Path(folder) if (folder := environ.get("SSL_CERT_DIR")) else None,
        on_lambda=bool(environ.get("AWS_LAMBDA_FUNCTION_NAME")),
        export_traces=any(environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in _COLLECTOR),
        **found,
    )


def _named(field_name: str) -> str:
    return PREFIX + field_name.removesuffix("_ms").upper()


_COLLECTOR = ("ENDPOINT", "TRACES_ENDPOINT")  # read in full by OpenTelemetry itself
_VARIABLES: Final[Mapping[str, Variable]] = {
    name: how
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    for how in getattr(hint, "__metadata__", ())
}
_KNOWN = {
    _named(name) + suffix
    for name, how in _VARIABLES.items()
    for suffix in (("", "_FILE") if how.secret else ("",))
}
# Of a service named keybrake, or keybrake-something, Kubernetes tells every pod of its namespace.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)


def _check_names(environ: Mapping[str, str]) -> None:
    # A typo in KEYBRAKE_ACCOUNT_DAILY_CAP would otherwise be a ceiling that is not there.
    for variable in sorted(environ):
        unknown = variable.startswith(PREFIX) and variable not in _KNOWN
        if unknown and not _SERVICE_LINK.fullmatch(variable):
            name = variable.removeprefix(PREFIX)
            close = difflib.get_close_matches(name, [k.removeprefix(PREFIX) for k in _KNOWN], n=1)
            hint = f"Did you mean {PREFIX}{close[0]}?" if close else "docs/settings.md lists all."
            raise SettingsError(variable, "is not a setting", hint)


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
    reached = [
        ("KEYBRAKE_STRIPE_API_BASE", settings.stripe_api_base),
        ("KEYBRAKE_PROXY_URL", settings.proxy_url),
        ("KEYBRAKE_PUBLIC_URL", settings.public_url),
        # Whoever changes an issuer's keys on the way is anybody.
        *(("KEYBRAKE_OAUTH_ISSUERS", issuer) for issuer in settings.oauth_issuers),
    ]
    for variable, url in reached:
        if url and not settings.may_reach(url):
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
        environment.check_absolute(url, "KEYBRAKE_DATABASE_URL")
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
