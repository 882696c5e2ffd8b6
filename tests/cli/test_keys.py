from __future__ import annotations

import shlex

import pytest

from kb_mcp.cli.opening import OpenStore
from kb_mcp.proxy.access.roles import ROLES
from tests.cli.machine import Machine


def test_a_key_is_issued_with_what_was_asked_for(machine: Machine) -> None:
    issued = machine.json(
        *("keys", "issue", "--role", "billing", "--label", "demo", "--agent", "biller"),
        *("--daily-cap", "10000.00usd", "--daily-cap", "5000jpy", "--rate", "60/min"),
        *("--daily-charges", "7", "--expires", "30d"),
    )
    policy = issued["policy"]
    assert issued["token"].startswith(f"vk_test_{issued['id']}_")
    assert (issued["role"], issued["mode"], issued["agent"]) == ("billing", "test", "biller")
    assert policy["caps"]["daily"] == {"usd": 1_000_000, "jpy": 5000}
    assert (policy["rate"], policy["daily_charges"]) == (60, 7)
    assert issued["expires_at"] is not None


def test_a_list_of_many_keys_reads_the_time_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        machine.token()
    asked, read = [], OpenStore.now

    def now(opened: OpenStore) -> int:
        asked.append(opened)
        return read(opened)

    monkeypatch.setattr(OpenStore, "now", now)
    assert len(machine.json("keys", "list")) == 3
    assert len(asked) == 1


def test_without_json_the_key_says_in_words_what_it_may_do(machine: Machine) -> None:
    capped = ("--per-charge-cap", "50.00usd", "--daily-cap", "500.00usd")
    shown = machine.run("keys", "issue", "--role", "billing", *capped).stdout
    assert "vk_test_" in shown
    assert "At most 50.00 USD a charge." in shown


def test_overlaps_and_kinds_of_period_are_options_of_a_new_key(machine: Machine) -> None:
    issued = machine.json("keys", "issue", "--role", "billing", "--daily-cap", "5.00usd",
                          "--overlaps", "allow", "--period-kinds", "month, quarter")  # fmt: skip
    policy = issued["policy"]
    assert (policy["overlaps"], policy["period_kinds"]) == ("allow", ["month", "quarter"])
    shown = machine.run("keys", "show", issued["id"]).stdout
    assert "A period must be a month or quarter." in shown
    assert "It may bill days that another period's bill holds already" in shown
    plain = machine.json("keys", "issue", "--role", "billing", "--daily-cap", "5.00usd")
    assert plain["policy"]["overlaps"] == "refuse"
    assert "period_kinds" not in plain["policy"]


def test_every_cap_on_refunds_is_an_option_of_a_new_key(machine: Machine) -> None:
    issued = machine.json(
        *("keys", "issue", "--role", "refunds", "--per-refund-cap", "5.00usd"),
        *("--refund-daily-cap", "6.00usd", "--refund-monthly-cap", "7.00usd"),
        *("--refund-per-customer-daily-cap", "8.00usd", "--daily-refunds", "9"),
    )
    assert issued["policy"]["refund_caps"] == {
        "per_refund": {"usd": 500},
        "daily": {"usd": 600},
        "monthly": {"usd": 700},
        "per_customer_daily": {"usd": 800},
    }
    assert issued["policy"]["daily_refunds"] == 9


def test_the_help_of_a_new_key_names_every_built_in_role(machine: Machine) -> None:
    told = "".join(machine.run("keys", "issue", "--help").stdout.split())
    assert f"Abuilt-inrole:{','.join(ROLES)}." in told


def test_a_token_is_shown_once(machine: Machine) -> None:
    token = machine.token()
    for args in (["keys", "list"], ["keys", "list", "--json"], ["audit", "list", "--json"]):
        assert token not in machine.run(*args).stdout


def test_a_policy_file_is_taken_and_narrowed(machine: Machine) -> None:
    file = machine.folder / "policy.toml"
    file.write_text('role = "mine"\nallow = ["POST /v1/charges"]\nmax_attempts = 2\n')
    issued = machine.json("keys", "issue", "--policy", str(file), "--daily-cap", "5.00usd")
    assert issued["role"] == "mine"
    assert issued["policy"]["max_attempts"] == 2
    assert issued["policy"]["caps"]["daily"] == {"usd": 500}


def test_a_bad_policy_is_refused_with_line_and_reason(machine: Machine) -> None:
    file = machine.folder / "policy.toml"
    file.write_text('role = "mine"\nallow = ["POST /v1/charges"]\nmax_attemps = 2\n')
    told = machine.run("keys", "issue", "--policy", str(file), code=2).stderr
    assert "max_attemps: there is no such field (line 3)" in told
    assert len(told.splitlines()) == 2


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--role", "billing", "--policy", "x.toml"],
        ["--role", "nobody"],
        ["--role", "billing", "--overlaps", "yes"],
        ["--role", "billing", "--period-kinds", "months"],
        ["--role", "billing", "--period-kinds", ""],
        ["--role", "billing", "--daily-cap", "ten"],
        ["--role", "billing", "--daily-cap", "1.00usd", "--per-charge-cap", ""],
        ["--role", "billing", "--daily-cap", "1.00usd", "--approval-above", ""],
        ["--role", "billing", "--daily-cap", "1.00usd", "--daily-cap", "2.00usd"],
        ["--role", "billing", "--daily-cap", "1.00usd", "--monthly-cap", "2.00eur"],
        ["--role", "billing", "--expires", "2001-01-01"],
        ["--role", "billing", "--expires", "soon"],
        ["--role", "billing", "--rate", "many"],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage_in_one_line_and_a_hint(
    machine: Machine, args: list[str]
) -> None:
    told = machine.run("keys", "issue", *args, code=2).stderr.splitlines()
    assert [line.split(":")[0] for line in told] == ["Error", "Hint"]


@pytest.mark.parametrize(
    "args",
    [
        ("--role", "billing"),
        ("--role", "billing-payment-intents-with-status"),
        ("--role", "billing", "--per-charge-cap", "50.00usd", "--daily-charges", "10"),
        ("--role", "billing", "--approval-above", "50.00usd"),
    ],
)
def test_a_key_that_moves_money_needs_a_cap_or_the_word_that_it_has_none(
    machine: Machine, args: tuple[str, ...]
) -> None:
    told = machine.run("keys", "issue", *args, code=2).stderr.splitlines()
    line = f"kb-mcp keys issue {' '.join(args)}"
    assert told[0].startswith(f"Error: a key of role {args[1]} moves money, and no cap per day")
    assert told[1] == (f"Hint: {line} --daily-cap 1000.00usd (or, to have none: {line} --uncapped)")
    assert machine.json("keys", "list") == []
    issued = machine.json("keys", "issue", *args, "--uncapped")
    assert machine.json("audit", "list")[-1]["note"] == "uncapped"
    assert told_of_keys(machine) == (True, f"1 serve; without a cap over time: {issued['id']}")
    machine.run("keys", "revoke", issued["id"])
    assert told_of_keys(machine) == (True, "0 serve")


def told_of_keys(machine: Machine) -> tuple[bool, str]:
    """Return what the doctor says of the keys."""
    checks = {check["name"]: check for check in machine.json("doctor")["checks"]}
    return checks["keys"]["ok"], checks["keys"]["detail"]


@pytest.mark.parametrize("kind", ["daily", "monthly", "per-customer-daily"])
def test_any_cap_over_time_is_enough(machine: Machine, kind: str) -> None:
    machine.run("keys", "issue", "--role", "billing", f"--{kind}-cap", "5000jpy")


def test_a_key_that_only_reads_needs_no_cap(machine: Machine) -> None:
    machine.run("keys", "issue", "--role", "audit")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("--per-charge-cap 5000jpy", "--daily-cap 1000jpy"),
        (
            "--per-charge-cap 50.00usd --per-charge-cap 45.00eur --rate 60/min",
            "--daily-cap 1000.00usd --daily-cap 1000.00eur",
        ),
        ("--label 'two words' --agent a1 --expires 30d --json", "--daily-cap 1000.00usd"),
        ("--period-kinds month --overlaps allow", "--daily-cap 1000.00usd"),
    ],
)
def test_the_line_to_type_holds_what_was_given_and_can_be_typed(
    machine: Machine, given: str, missing: str
) -> None:
    typed = ("--role", "billing", *shlex.split(given))

    told = machine.run("keys", "issue", *typed, code=2).stderr
    line = told.partition("Hint: kb-mcp ")[2].partition(" (or, to have none: ")[0]

    assert line.endswith(f" {missing}")
    assert sorted(shlex.split(line)) == sorted(("keys", "issue", *typed, *missing.split()))
    machine.run(*shlex.split(line))


def test_the_line_to_type_names_the_policy_file(machine: Machine) -> None:
    file = machine.folder / "my policy.toml"
    file.write_text('role = "mine"\nallow = ["POST /v1/charges"]\n')
    told = machine.run("keys", "issue", "--policy", str(file), "--rate", "9/min", code=2).stderr
    assert f"issue --policy '{file}' --rate 9/min --daily-cap 1000.00usd (or" in told


def test_a_threshold_for_approvals_is_an_option_of_its_own(machine: Machine) -> None:
    token = machine.token("--approval-above", "10.00usd", "--approval-above", "500kwd")
    policy = machine.json("keys", "show", token.split("_")[2])["policy"]
    assert policy["approval_above"] == {"usd": 1000, "kwd": 500_000}
    refused = machine.charge(token, "2026-11")
    assert refused.json()["error"]["code"] == "approval_required"


def test_keys_are_listed_with_their_state(machine: Machine) -> None:
    first = machine.token().split("_")[2]
    second = machine.json("keys", "issue", "--role", "audit")["id"]
    machine.run("keys", "revoke", first, "--reason", "lost")
    listed = {key["id"]: key for key in machine.json("keys", "list")}
    assert (listed[first]["state"], listed[first]["revoke_reason"]) == ("revoked", "lost")
    assert listed[second]["state"] == "active"
    assert machine.json("keys", "show", second)["role"] == "audit"


def test_a_revoked_key_charges_nothing_more(machine: Machine) -> None:
    token = machine.token()
    key_id = token.split("_")[2]
    shown = machine.run("keys", "revoke", key_id).stdout
    assert "Sends under way when it took effect: 0." in shown
    refused = machine.charge(token, "2026-11")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "vault_key_revoked")
    assert machine.charges() == []


def test_a_rotated_key_goes_on_under_the_same_caps(machine: Machine) -> None:
    token = machine.token("--daily-cap", "50.00usd")
    machine.charge(token, "2026-11")
    rotated = machine.json("keys", "rotate", token.split("_")[2], "--overlap", "1h")
    assert rotated["replaces"] == token.split("_")[2]
    refused = machine.charge(rotated["token"], "2026-10")
    assert refused.json()["error"]["code"] == "spend_cap_exceeded"
    machine.run("keys", "rotate", token.split("_")[2], code=1)


def test_a_successor_ends_no_later_than_its_policy(machine: Machine) -> None:
    ends = machine.json("keys", "issue", "--role", "audit", "--expires", "3h")["expires_at"]
    file = machine.folder / "policy.toml"
    file.write_text(f'role = "mine"\nallow = ["GET /v1/charges/*"]\nexpires_at = "{ends}"\n')
    first = machine.json("keys", "issue", "--policy", str(file))
    second = machine.json("keys", "rotate", first["id"])
    assert second["expires_at"] == first["expires_at"]


def test_only_a_frozen_key_is_unfrozen(machine: Machine) -> None:
    file = machine.folder / "policy.toml"
    file.write_text('role = "mine"\nallow = ["POST /v1/charges"]\ndaily_declines = 1\n')
    token = machine.json("keys", "issue", "--policy", str(file), "--uncapped")["token"]
    key_id = token.split("_")[2]
    machine.run("keys", "unfreeze", key_id, "--reason", "why not", code=1)
    machine.charge(token, "2026-11", customer="cus_Declined1")
    assert machine.json("keys", "show", key_id)["state"] == "frozen"
    unfrozen = machine.json("keys", "unfreeze", key_id, "--reason", "cards checked")
    assert unfrozen["state"] == "active"


@pytest.mark.parametrize("command", ["show", "revoke", "rotate"])
def test_a_key_that_is_not_there_is_a_failure_with_a_hint(machine: Machine, command: str) -> None:
    told = machine.run("keys", command, "abcdefabcdef", code=1).stderr
    assert told.startswith("Error: there is no vault key abcdefabcdef\nHint: ")


@pytest.mark.parametrize(("stripe_key", "mode"), [("rk_live_x", "live"), ("rk_test_x", "test")])
def test_keys_are_issued_and_operations_listed_without_the_stripe_key(
    machine: Machine, stripe_key: str, mode: str
) -> None:
    machine.serve_once(KEYBRAKE_STRIPE_KEY=stripe_key, KEYBRAKE_ACCOUNT="acct_1")
    issued = machine.json("keys", "issue", "--role", "billing", "--daily-cap", "1.00usd")
    assert issued["token"].startswith(f"vk_{mode}_")
    assert [key["id"] for key in machine.json("keys", "list")] == [issued["id"]]
    assert machine.json("operations", "list") == []
    assert machine.json("spend")
    machine.run("settings", "show")
    machine.run("audit", "list", KEYBRAKE_ACCOUNT="acct_1")
    # What is said on purpose must still agree, and nothing is sent without the key.
    machine.run("keys", "list", code=2, KEYBRAKE_ACCOUNT="acct_2")
    machine.run("keys", "list", code=2, KEYBRAKE_STRIPE_KEY="rk_test_sandbox")
    machine.run("reconcile", "--since", "1d", code=2)


def test_a_live_stores_clock_is_not_turned_by_leaving_the_stripe_key_out(machine: Machine) -> None:
    machine.serve_once(KEYBRAKE_STRIPE_KEY="rk_live_x")
    machine.run("keys", "list", code=2, KEYBRAKE_CLOCK_OFFSET="86400")
