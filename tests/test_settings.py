"""Settings: what is read, what is refused, and that no message shows a value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kb_mcp.money import Money
from kb_mcp.settings import SANDBOX_KEY, Secret, Settings, SettingsError, load_settings

POSTGRES = "postgresql://kb:pass@db.internal/kb"
MASTER = "m" * 32
SANDBOX = "http://127.0.0.1:8788"
LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "charge"}


def load(**variables: str) -> Settings:
    return load_settings({f"KEYBRAKE_{name}": value for name, value in variables.items()})


def test_an_empty_environment_is_the_sandbox_on_a_file_of_the_user() -> None:
    settings = load_settings({"PATH": "/bin"})
    assert settings.upstream_mode == "sandbox"
    assert settings.upstream_base is None
    assert settings.account_label == "sandbox"
    assert settings.database_path is not None
    assert settings.database_path.is_absolute()
    assert settings.database_path.parts[-2:] == ("kb-mcp", "keybrake.db")
    assert not settings.on_lambda


def test_without_an_argument_the_environment_of_the_process_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEYBRAKE_ACCOUNT", "acct_1")
    assert load_settings().account_label == "acct_1"


def test_every_setting_of_the_contract_is_read() -> None:
    settings = load(
        DATABASE_URL=POSTGRES,
        STRIPE_KEY="rk_test_abc",
        STRIPE_API_BASE="http://stripe-mock:12111/",
        ACCOUNT="acct_1",
        ALLOW_HTTP="1",
        PROXY_URL="http://proxy:8787",
        VAULT_KEY_BILLING="vk_test_1_a",
        VAULT_KEY_AUDIT="arn:aws:secretsmanager:eu-west-1:1:secret:audit",
        CHARGE_API="payment_intents",
        ALLOW_REFERENCE="1",
        ADMIN_TOKEN="token",
        MASTER_KEY=MASTER,
        ALLOWED_HOSTS="Billing.example.com, 10.0.0.5:8787",
        PUBLIC_URL="https://ops.example.com",
        ACCOUNT_DAILY_CAP="50000.00usd, 5000jpy",
        UPSTREAM_TIMEOUT="2.5",
        RECOVERY_INTERVAL="1",
        RECOVERY_GRACE="60",
        NODE_ID="host-1",
    )
    assert settings == Settings(
        database_url=POSTGRES,
        stripe_key=Secret("rk_test_abc", "KEYBRAKE_STRIPE_KEY"),
        stripe_api_base="http://stripe-mock:12111",
        account="acct_1",
        allow_http=True,
        proxy_url="http://proxy:8787",
        vault_key_billing=Secret("vk_test_1_a", "KEYBRAKE_VAULT_KEY_BILLING"),
        vault_key_audit=Secret(
            "arn:aws:secretsmanager:eu-west-1:1:secret:audit", "KEYBRAKE_VAULT_KEY_AUDIT"
        ),
        charge_api="payment_intents",
        allow_reference=True,
        admin_token=Secret("token", "KEYBRAKE_ADMIN_TOKEN"),
        master_key=Secret(MASTER, "KEYBRAKE_MASTER_KEY"),
        allowed_hosts=("billing.example.com", "10.0.0.5:8787"),
        public_url="https://ops.example.com",
        account_daily_cap=(Money(5_000_000, "usd"), Money(5_000, "jpy")),
        upstream_timeout_ms=2_500,
        recovery_interval_ms=1_000,
        recovery_grace_ms=60_000,
        node_id="host-1",
    )
    assert settings.database_path is None


@pytest.mark.parametrize(
    ("variables", "mode", "base"),
    [
        ({"STRIPE_KEY": SANDBOX_KEY}, "sandbox", None),
        ({"STRIPE_KEY": SANDBOX_KEY, "STRIPE_API_BASE": SANDBOX}, "sandbox", SANDBOX),
        ({"STRIPE_KEY": "rk_test_a"}, "test", "https://api.stripe.com"),
        ({"STRIPE_KEY": "rk_test_a", "STRIPE_API_BASE": SANDBOX}, "test", SANDBOX),
        ({"STRIPE_KEY": "rk_live_a"}, "live", "https://api.stripe.com"),
        (
            {"STRIPE_KEY": "sk_live_a", "ALLOW_UNRESTRICTED_KEY": "1"},
            "live",
            "https://api.stripe.com",
        ),
    ],
    ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
)
def test_the_key_decides_the_mode_and_where_requests_go(
    variables: dict[str, str], mode: str, base: str | None
) -> None:
    settings = load(**variables)
    assert (settings.upstream_mode, settings.upstream_base) == (mode, base)


REFUSED = {
    "a typo": (
        "ACCOUNT_DAILY_CAPS",
        {"ACCOUNT_DAILY_CAPS": "1.00usd"},
        "KEYBRAKE_ACCOUNT_DAILY_CAP",
    ),
    "no file for a plain one": ("ACCOUNT_FILE", {"ACCOUNT_FILE": "/a"}, "KEYBRAKE_ACCOUNT"),
    "something unheard of": ("QQQQQ", {"QQQQQ": "1"}, "docs/settings.md"),
    "unexpanded": ("STRIPE_KEY", {"STRIPE_KEY": "${STRIPE_KEY}"}, "refers to"),
    "empty": ("STRIPE_KEY", {"STRIPE_KEY": " "}, "leave it out"),
    "value and file": ("ADMIN_TOKEN", {"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": "/a"}, "one of"),
    "no such file": ("ADMIN_TOKEN_FILE", {"ADMIN_TOKEN_FILE": "/no/such"}, "permissions"),
    "base without key": ("STRIPE_API_BASE", {"STRIPE_API_BASE": SANDBOX}, SANDBOX_KEY),
    "unrestricted key": ("STRIPE_KEY", {"STRIPE_KEY": "sk_test_a"}, "UNRESTRICTED_KEY=1"),
    "unrestricted live key": ("STRIPE_KEY", {"STRIPE_KEY": "sk_live_a"}, "UNRESTRICTED_KEY=1"),
    "publishable key": ("STRIPE_KEY", {"STRIPE_KEY": "pk_live_a"}, "rk_test_"),
    "vault key upstream": ("STRIPE_KEY", {"STRIPE_KEY": "vk_live_a"}, "rk_test_"),
    "live key elsewhere": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": "rk_live_a", "STRIPE_API_BASE": "https://api.stripe.com.evil.example"},
        "Stripe's own",
    ),
    "live key over http": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": "rk_live_a", "STRIPE_API_BASE": "http://api.stripe.com", "ALLOW_HTTP": "1"},
        "Stripe's own",
    ),
    "live key to the sandbox": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": "rk_live_a", "STRIPE_API_BASE": SANDBOX},
        "Stripe's own",
    ),
    "sandbox key to Stripe": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": SANDBOX_KEY, "STRIPE_API_BASE": "https://api.stripe.com"},
        SANDBOX,
    ),
    "base with a path": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": SANDBOX_KEY, "STRIPE_API_BASE": f"{SANDBOX}/v1"},
        "host and port",
    ),
    "base with a password": (
        "STRIPE_API_BASE",
        {"STRIPE_KEY": SANDBOX_KEY, "STRIPE_API_BASE": "http://u:p@127.0.0.1"},
        "host and port",
    ),
    "proxy without scheme": ("PROXY_URL", {"PROXY_URL": "proxy:8787"}, "host and port"),
    "proxy with a bad port": ("PROXY_URL", {"PROXY_URL": "http://127.0.0.1:99999"}, "host and"),
    "http off loopback": ("PROXY_URL", {"PROXY_URL": "http://proxy:8787"}, "ALLOW_HTTP=1"),
    "http to a name like loopback": (
        "PROXY_URL",
        {"PROXY_URL": "http://127.0.0.1.example.com"},
        "ALLOW_HTTP=1",
    ),
    "embedded with a proxy": ("EMBEDDED", {"EMBEDDED": "1", "PROXY_URL": SANDBOX}, "one of"),
    "Stripe key as vault key": ("VAULT_KEY_AUDIT", {"VAULT_KEY_AUDIT": "rk_live_a"}, "vk_"),
    "flag in words": ("ALLOW_HTTP", {"ALLOW_HTTP": "true"}, "Set 1"),
    "unknown api": ("CHARGE_API", {"CHARGE_API": "orders"}, "payment_intents"),
    "short master key": ("MASTER_KEY", {"MASTER_KEY": "short"}, "32"),
    "PostgreSQL without master key": ("MASTER_KEY", {"DATABASE_URL": POSTGRES}, "every host"),
    "another database": ("DATABASE_URL", {"DATABASE_URL": "mysql://db/kb"}, "sqlite:///"),
    "a ledger per folder": ("DATABASE_URL", {"DATABASE_URL": "sqlite:///kb.db"}, "Set that"),
    "another variable in a path": ("DATABASE_URL", {"DATABASE_URL": "sqlite:///$X/kb"}, "$HOME"),
    "somebody's home": ("DATABASE_URL", {"DATABASE_URL": "sqlite:///~bob/kb.db"}, "~bob/kb.db"),
    "unexpanded password": ("DATABASE_URL", {"DATABASE_URL": "postgresql://a:${P}@b"}, "refers"),
    "no certificates": ("CA_FILE", {"CA_FILE": "/no/such"}, "PEM"),
    "half an ARN": ("VAULT_KEY_AUDIT", {"VAULT_KEY_AUDIT": "arn:aws:secretsmanager:a:b"}, "vk_"),
    "ledger in memory": ("DATABASE_URL", {"DATABASE_URL": "sqlite:///:memory:"}, "Name a file"),
    "any host": ("ALLOWED_HOSTS", {"ALLOWED_HOSTS": "*"}, "wildcards"),
    "cap without currency": ("ACCOUNT_DAILY_CAP", {"ACCOUNT_DAILY_CAP": "500"}, "50000.00usd"),
    "cap twice": ("ACCOUNT_DAILY_CAP", {"ACCOUNT_DAILY_CAP": "5.00usd,6.00usd"}, "per currency"),
    "endless timeout": ("UPSTREAM_TIMEOUT", {"UPSTREAM_TIMEOUT": "inf"}, "25"),
    "a timeout beyond the caller's": ("UPSTREAM_TIMEOUT", {"UPSTREAM_TIMEOUT": "41"}, "40"),
    "no timeout": ("UPSTREAM_TIMEOUT", {"UPSTREAM_TIMEOUT": "0"}, "25"),
    "negative interval": ("RECOVERY_INTERVAL", {"RECOVERY_INTERVAL": "-1"}, "15"),
    "grace below timeout": ("RECOVERY_GRACE", {"RECOVERY_GRACE": "25"}, "UPSTREAM_TIMEOUT"),
    "node id with a line break": ("NODE_ID", {"NODE_ID": "a\nb"}, "letters"),
    "clock of a live account": (
        "CLOCK_OFFSET",
        {"STRIPE_KEY": "rk_live_a", "CLOCK_OFFSET": "1"},
        "Leave it out",
    ),
    "clock of PostgreSQL": (
        "CLOCK_OFFSET",
        {"DATABASE_URL": POSTGRES, "MASTER_KEY": MASTER, "CLOCK_OFFSET": "-1"},
        "Leave it out",
    ),
}


@pytest.mark.parametrize(("variable", "variables", "hint"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused_by_name_with_a_hint(
    variable: str, variables: dict[str, str], hint: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(**variables)
    assert refusal.value.variable == f"KEYBRAKE_{variable}"
    assert hint in refusal.value.hint
    assert str(refusal.value).startswith(f"KEYBRAKE_{variable} {refusal.value.problem}. ")


@pytest.mark.parametrize(
    "variables",
    [
        {"PROXY_URL": "http://localhost:8787"},
        {"PROXY_URL": "http://[::1]:8787"},
        {"PROXY_URL": "https://proxy.example.com/billing/"},
        {"CLOCK_OFFSET": "-3600"},
        {"CLOCK_OFFSET": "86400", "STRIPE_KEY": "rk_test_a"},
        {"DATABASE_URL": "sqlite:////srv/kb.db"},
        {"DATABASE_URL": "sqlite:///~/kb.db"},
    ],
    ids=str,
)
def test_what_can_be_meant_is_accepted(variables: dict[str, str]) -> None:
    assert load(**variables) != load()


@pytest.mark.parametrize(
    "name",
    [
        "STRIPE_KEY",
        "VAULT_KEY",
        "VAULT_KEY_BILLING",
        "VAULT_KEY_AUDIT",
        "MASTER_KEY",
        "DATABASE_URL",
        "ADMIN_TOKEN",
    ],
)
@pytest.mark.parametrize("filed", [False, True], ids=["in the variable", "in a file"])
def test_no_secret_shows_in_a_message_or_a_repr(name: str, filed: bool, tmp_path: Path) -> None:
    hidden = "hush"
    (tmp_path / "secret").write_text(hidden)
    value = {f"{name}_FILE": str(tmp_path / "secret")} if filed else {name: hidden}
    try:
        shown = repr(load(**value)) + str(load(**value))
    except SettingsError as refusal:
        assert refusal.variable == f"KEYBRAKE_{name}"  # noqa: PT017 - only some values are refused
        shown = f"{refusal} {refusal!r} {refusal.__cause__!r}"
    assert "Settings" in shown
    assert hidden not in shown


def test_a_secret_in_a_file_is_read_without_its_line_end_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("vk_test_1_old\n")
    key = load(VAULT_KEY_BILLING_FILE=str(file)).vault_key_billing
    assert key is not None
    file.write_text("vk_test_1_new\n")
    assert (key.reveal(), key.reread().reveal()) == ("vk_test_1_old", "vk_test_1_new")
    assert key.reread().variable == "KEYBRAKE_VAULT_KEY_BILLING"


def test_a_secret_in_the_environment_is_itself_when_read_again() -> None:
    key = load(VAULT_KEY_BILLING="vk_test_1_a").vault_key_billing
    assert key is not None
    assert key.reread() is key


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"k" * 65_537])
def test_a_file_without_a_secret_is_refused_without_showing_it(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SettingsError, match="holds no secret") as refusal:
        load(ADMIN_TOKEN_FILE=str(tmp_path / "key"))
    assert refusal.value.variable == "KEYBRAKE_ADMIN_TOKEN_FILE"
    assert refusal.value.__context__ is None


def test_a_secret_stays_hidden_when_settings_become_a_dict() -> None:
    settings = load(ADMIN_TOKEN="hush")
    assert "hush" not in str(dataclasses.asdict(settings))
    assert "hush" not in f"{settings.admin_token}"


def test_on_lambda_the_ledger_is_not_in_the_function_unless_asked_for() -> None:
    with pytest.raises(SettingsError, match="KEYBRAKE_EMBEDDED=1"):
        load_settings(LAMBDA)
    assert load_settings(LAMBDA | {"KEYBRAKE_EMBEDDED": "1"}).on_lambda
    assert load_settings(LAMBDA | {"KEYBRAKE_PROXY_URL": "https://proxy.example.com"}).on_lambda


def test_settings_made_by_hand_are_held_to_the_same_rules() -> None:
    live = Secret("rk_live_a", "KEYBRAKE_STRIPE_KEY")
    with pytest.raises(SettingsError, match="KEYBRAKE_STRIPE_API_BASE"):
        Settings(database_url="sqlite:////kb.db", stripe_key=live, stripe_api_base=SANDBOX)


@pytest.mark.parametrize(
    "name",
    [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_AGENTS",
        "PORT",
        "PORT_8787_TCP",
        "PORT_8787_TCP_ADDR",
        "PORT_8787_TCP_PROTO",
        "PROXY_SERVICE_HOST",
        "PROXY_PORT_53_UDP_PORT",
    ],
)
def test_what_kubernetes_tells_of_a_service_of_our_name_is_ignored(name: str) -> None:
    assert load(**{name: "tcp://10.0.0.1:8787"}) == load()


@pytest.mark.parametrize("name", ["PROT", "PORT_X_TCP", "SERVICE", "PORT_8787"])
def test_what_only_looks_like_a_service_link_is_still_an_error(name: str) -> None:
    with pytest.raises(SettingsError, match="is not a setting"):
        load(**{name: "1"})


def test_issuers_are_kept_as_they_are_written() -> None:
    settings = load(
        OAUTH_ISSUERS="https://a.example/ https://b.example/realms/x http://127.0.0.1:9",
        PUBLIC_URL="https://keybrake.example",
    )

    assert settings.oauth_issuers == (
        "https://a.example/",
        "https://b.example/realms/x",
        "http://127.0.0.1:9",
    )
    assert settings.oauth_resource == "https://keybrake.example/mcp"
    assert settings.oauth_address == "https://keybrake.example/mcp"


def test_an_audience_need_not_be_an_address() -> None:
    named = load(OAUTH_ISSUERS="https://a.example", OAUTH_AUDIENCE="api://kb-mcp")
    public = load(
        OAUTH_ISSUERS="https://a.example",
        OAUTH_AUDIENCE="api://kb-mcp",
        PUBLIC_URL="https://keybrake.example",
    )

    assert (named.oauth_resource, named.oauth_address) == ("api://kb-mcp", None)
    assert public.oauth_address == "https://keybrake.example/mcp"


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"OAUTH_ISSUERS": "idp.example", "OAUTH_AUDIENCE": "x"}, "OAUTH_ISSUERS"),
        ({"OAUTH_ISSUERS": "https://a.example?x=1", "OAUTH_AUDIENCE": "x"}, "OAUTH_ISSUERS"),
        ({"OAUTH_ISSUERS": "https://a.example,https://b.example", "OAUTH_AUDIENCE": "x"},
         "OAUTH_ISSUERS"),
        ({"OAUTH_ISSUERS": "https://a.example https://a.example", "OAUTH_AUDIENCE": "x"},
         "OAUTH_ISSUERS"),
        ({"OAUTH_ISSUERS": "http://a.example", "OAUTH_AUDIENCE": "x"}, "OAUTH_ISSUERS"),
        ({"OAUTH_ISSUERS": "https://a.example"}, "OAUTH_AUDIENCE"),
    ],
    ids=str,
)  # fmt: skip
def test_issuers_that_cannot_be_meant_are_refused(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(**environ)
    assert refusal.value.variable == f"KEYBRAKE_{variable}"
