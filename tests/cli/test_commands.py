from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from kb_mcp.cli import main
from kb_mcp.operators import alerts as alert_rules
from kb_mcp.proxy.edge import records
from tests.cli.machine import Machine
from tests.months import lately


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        _, command, _ = group.resolve_command(context, [name])
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def spawn(machine: Machine, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kb_mcp", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.process_env,
    )


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(machine: Machine, path: tuple[str, ...]) -> None:
    assert "Example: " in machine.run(*path, "--help").stdout


def test_help_says_of_each_command_what_its_own_help_says_first(machine: Machine) -> None:
    told = " ".join(machine.run("--help").stdout.split())
    context = click.Context(main)
    for name in main.list_commands(context):
        _, command, _ = main.resolve_command(context, [name])
        assert command is not None
        assert f" {name} {command.get_short_help_str(200)}" in told


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from kb_mcp.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "heavy = {'mcp', 'stripe', 'pydantic', 'rich', 'uvicorn', 'cryptography', 'pyreqwest'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wrong_usage_is_one_line_and_a_hint(machine: Machine) -> None:
    told = machine.run("spend", "--nonsense", code=2).stderr.splitlines()
    assert told[0].startswith("Error: ")
    assert told[1] == "Hint: main spend --help shows what there is."
    assert len(told) == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KEYBRAKE_UPSTREAM_TIMEOUT", "soon"),
        ("KEYBRAKE_DATABASE_URL", "mysql://nowhere"),
        ("KEYBRAKE_ACCOUNT", "another"),
    ],
)
def test_wrong_settings_are_named(machine: Machine, variable: str, value: str) -> None:
    machine.charge(machine.token())
    told = machine.run("keys", "list", code=2, **{variable: value}).stderr.splitlines()
    assert [line.split(":")[0] for line in told] == ["Error", "Hint"]


def test_a_store_that_is_no_database_is_wrong_settings(machine: Machine) -> None:
    machine.store.write_bytes(b"this is a letter to my grandmother" * 100)
    told = machine.run("keys", "list", code=2).stderr
    assert "file is not a database" in told


def test_settings_of_the_store_are_set_for_all_and_audited(machine: Machine) -> None:
    machine.run("settings", "set", "account_daily_cap", "500.00usd,400.00eur")
    shown = machine.json("settings", "set", "upstream_timeout", "10")
    assert shown["account_daily_cap"] == {"usd": 50_000, "eur": 40_000}
    assert shown["upstream_timeout"] == 10
    assert machine.json("audit", "list")[-1]["note"] == "upstream_timeout: 25000 -> 10000"
    assert machine.charge(machine.token(), "2026-11", amount=50_001).status_code == 403
    assert machine.json("settings", "set", "account_daily_cap", "none")["account_daily_cap"] == {}


@pytest.mark.parametrize(
    "args",
    [
        ("recovery_grace", "20"),
        ("upstream_timeout", "0"),
        ("upstream_timeout", "41"),
        ("upstream_timeout", "2.5"),
        ("account_daily_cap", "lots"),
        ("colour", "blue"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(machine: Machine, args: tuple[str, str]) -> None:
    before = machine.json("settings", "show")
    machine.run("settings", "set", *args, code=2)
    assert machine.json("settings", "show") == before


@pytest.mark.parametrize(
    "line",
    [
        "settings set upstream_timeout soon",
        "operations resolve op_1",
        "operations resolve op_1 --void",
        "operations reopen op_1 --reason why --release --amount 5",
    ],
)
def test_wrong_usage_opens_no_store(machine: Machine, line: str) -> None:
    assert "--help shows what there is" in machine.run(*line.split(), code=2).stderr
    assert not [*machine.folder.iterdir()]


def test_keys_can_be_issued_before_anything_is_said_of_account_or_times(machine: Machine) -> None:
    machine.token()
    machine.json("settings", "show")
    # The first that has a Stripe key binds the store to its mode; the times are for who serves.
    told = {"KEYBRAKE_STRIPE_KEY": "rk_test_another"}
    for seconds in ("10", "12"):
        times = {"KEYBRAKE_UPSTREAM_TIMEOUT": seconds}
        facts = machine.json("settings", "show", code=0, **told, **times)
        assert (facts["mode"], facts["upstream_timeout"]) == ("test", int(seconds))
    assert len(machine.json("keys", "list", code=0, **told)) == 1
    other = {"KEYBRAKE_STRIPE_KEY": "rk_live_another"}
    assert "in test mode" in machine.run("keys", "list", code=2, **other).stderr


def test_a_process_set_up_otherwise_can_still_put_the_store_right(machine: Machine) -> None:
    machine.run("settings", "set", "upstream_timeout", "10")
    machine.run("keys", "list", code=2, KEYBRAKE_UPSTREAM_TIMEOUT="12")
    setting = ("settings", "set", "upstream_timeout", "12")
    machine.run(*setting, KEYBRAKE_UPSTREAM_TIMEOUT="12")
    machine.run("keys", "list", KEYBRAKE_UPSTREAM_TIMEOUT="12")


def test_spend_tells_the_ceiling_and_every_key(machine: Machine) -> None:
    machine.run("settings", "set", "account_daily_cap", "500.00usd")
    token = machine.token("--daily-cap", "100.00usd", "--monthly-cap", "1000.00usd")
    machine.charge(token, "2026-11")
    rows = {(row["scope"], row["window"]): row for row in machine.json("spend")}
    assert rows["account", "day"]["left"] == 50_000 - 2900
    assert rows["key", "day"]["left"] == 10_000 - 2900
    assert rows["key", "month"]["settled"] == 2900
    (line,) = [line for line in machine.run("spend").stdout.splitlines() if "  month " in line]
    assert line.split()[-8:] == ["1000.00", "USD", "29.00", "USD", "0.00", "USD", "971.00", "USD"]
    by_key = machine.json("spend", "--key", token.split("_")[2], "--day", "2026-01-15")
    assert [row["settled"] for row in by_key] == [0, 0]
    machine.run("spend", "--key", "nobody", code=1)


def test_a_bill_above_the_threshold_waits_for_its_approval(machine: Machine) -> None:
    file = machine.folder / "policy.json"
    file.write_text(
        '{"role": "mine", "allow": ["POST /v1/charges"], "approval_above": {"usd": 1000}}'
    )
    token = machine.json("keys", "issue", "--policy", str(file), "--uncapped")["token"]
    assert machine.charge(token, "2026-11").json()["error"]["code"] == "approval_required"
    (waiting,) = machine.json("approvals", "list", "--state", "pending")
    assert (waiting["amount"], waiting["billing_period"]) == (2900, lately("2026-11"))
    assert machine.json("approvals", "approve", waiting["id"])["decided_by"] == "cli"
    machine.run("approvals", "deny", waiting["id"], code=1)
    assert machine.charge(token, "2026-11").status_code == 200
    machine.run("approvals", "approve", "apr_none", code=1)


def test_operators_come_and_go_by_name(machine: Machine) -> None:
    added = machine.json("operators", "add", "maria")
    assert added["token"].startswith("kbo_")
    machine.run("operators", "add", "maria", code=1)
    machine.run("operators", "add", "admin", code=2)
    listed = machine.run("operators", "list", "--json").stdout
    assert "maria" in listed
    assert added["token"] not in listed
    machine.run("operators", "remove", "maria")
    machine.run("operators", "remove", "maria", code=1)
    assert machine.json("operators", "list") == []


def test_a_sound_machine_passes_the_doctor(machine: Machine) -> None:
    machine.charge(machine.token("--daily-cap", "100.00usd"), "2026-11")
    found = machine.json("doctor")
    assert found["ok"] is True
    assert {check["name"] for check in found["checks"]} == set(
        "settings store account heads gap adopted invariants overlaps audit upstream clock "
        "keys grants".split()
    )


def test_the_doctor_counts_the_live_bills_that_share_days(machine: Machine) -> None:
    allowing, plain = machine.token("--overlaps", "allow"), machine.token()
    machine.charge(plain, "2026-11")
    refused = machine.charge(plain, "2026-11-10/2026-11-20", 100)
    assert refused.json()["error"]["code"] == "period_already_charged"
    assert machine.charge(allowing, "2026-11-10/2026-11-20", 100).status_code == 200
    assert machine.charge(allowing, "2026-11-12", 200).status_code == 200

    def told() -> str:
        (check,) = [each for each in machine.json("doctor")["checks"] if each["name"] == "overlaps"]
        return str(check["detail"])

    assert told() == "no two live bills share days"
    # As the keys of an older version are, whatever they have billed.
    machine.tamper("UPDATE keys SET policy = json_remove(policy, '$.overlaps')")
    assert told() == "3 pairs of live bills share days; the later one would be refused now"


@pytest.mark.parametrize(
    ("statement", "check"),
    [
        ("UPDATE windows SET settled = settled + 1 WHERE scope = 'key'", "invariants"),
        ("UPDATE operations SET object_id = NULL", "invariants"),
        ("UPDATE attempts SET operation_id = operation_id", None),
        ("UPDATE audit SET amount = 7 WHERE amount IS NOT NULL", "audit"),
        ("DELETE FROM audit WHERE kind = 'outcome'", "heads"),
        ("UPDATE lineages SET frozen_at = 1, frozen_reason = 'x'", "keys"),
    ],
)
def test_the_doctor_finds_what_is_wrong(
    machine: Machine, statement: str, check: str | None
) -> None:
    machine.charge(machine.token("--daily-cap", "100.00usd"), "2026-11")
    machine.tamper(statement)
    found = machine.json("doctor", code=0 if check is None else 1)
    wrong = {each["name"] for each in found["checks"] if not each["ok"]}
    assert wrong == set() if check is None else check in wrong


def test_the_doctor_looks_at_every_operation_however_many_are_held_at_a_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = machine.token()
    for month in ("2026-09", "2026-10", "2026-11"):
        machine.charge(token, month)
    monkeypatch.setattr(records, "PAGE", 1)
    assert machine.json("doctor")["ok"] is True
    machine.tamper("UPDATE operations SET object_id = NULL")
    (check,) = [each for each in machine.json("doctor", code=1)["checks"] if not each["ok"]]
    assert check["name"] == "invariants"
    assert check["detail"].count("without an object") == 3


def test_the_doctor_names_the_file_and_sees_a_log_that_is_held(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.charge(machine.token(), "2026-11")
    (store,) = [each for each in machine.json("doctor")["checks"] if each["name"] == "store"]
    assert str(machine.store) in store["detail"]
    monkeypatch.setattr(alert_rules, "WAL_LARGE_BYTES", -1)
    (wrong,) = [each for each in machine.json("doctor", code=1)["checks"] if not each["ok"]]
    assert "cannot be emptied" in wrong["detail"]


def test_the_doctor_tells_wrong_settings_and_a_wrong_store(machine: Machine) -> None:
    wrong = machine.json("doctor", code=1, KEYBRAKE_UPSTREAM_TIMEOUT="soon")
    assert [check["name"] for check in wrong["checks"]] == ["settings"]
    token = machine.token()
    accounts = {check["name"]: check["detail"] for check in machine.json("doctor")["checks"]}
    assert accounts["account"].startswith("not bound yet")
    machine.charge(token)
    bound = machine.json("doctor", code=1, KEYBRAKE_ACCOUNT="another")
    assert [check["ok"] for check in bound["checks"]] == [True, False]


def test_migrate_says_which_schema_the_store_has(machine: Machine) -> None:
    assert re.search(r"schema [1-9]", machine.run("migrate").stdout)


def test_exports_are_written_and_drift_is_found(machine: Machine) -> None:
    folder = machine.folder / "schemas"
    machine.run("export", "all", "--out", str(folder))
    machine.run("export", "all", "--out", str(folder), "--check")
    file = folder / "mcp-tools.json"
    assert machine.run("export", "mcp").stdout == file.read_text()
    file.write_text(file.read_text().replace("charge", "debit", 1))
    told = machine.run("export", "all", "--out", str(folder), "--check", code=1).stderr
    assert "mcp-tools.json is not what the catalogue says" in told
    (tool,) = json.loads(machine.run("export", "mcp", "--tools", "charge").stdout)["tools"]
    assert tool["name"] == "charge"
    machine.run("export", "mcp", "--tools", "transfer", code=2)
    machine.run("export", "all", code=2)
    machine.run("export", "all", "--check", code=2)


def test_the_sandbox_prints_its_address_and_ends_when_told(machine: Machine) -> None:
    with spawn(machine, "sandbox", "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"Sandbox listening on http://127\.0\.0\.1:[0-9]+\n", line)
        port = line.rsplit(":", 1)[1].strip()
        taken = machine.run("sandbox", "--port", port, code=2).stderr
        assert taken.startswith(f"Error: cannot listen on 127.0.0.1:{port}")
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("option", ["--port", "--admin-port", "--sandbox-port"])
def test_up_names_the_option_of_a_port_that_is_taken(machine: Machine, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        ports = {"--port": "0", "--admin-port": "0", "--sandbox-port": "0", option: taken}
        with spawn(machine, "up", *itertools.chain(*ports.items())) as process:
            _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert told.startswith(f"Error: cannot listen on 127.0.0.1:{taken}: ")
    assert told.splitlines()[0].endswith(f" ({option})")


def test_up_prints_where_it_listens_and_drains_when_told(machine: Machine) -> None:
    ports = ("--port", "0", "--admin-port", "0", "--sandbox-port", "0")
    with spawn(machine, "up", *ports) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Agents: http://127.0.0.1:")
        assert process.stdout.readline().startswith("Upstream: SANDBOX")
        # Commands work beside it, on the same store.
        assert len(machine.json("keys", "list")) == 2
        process.terminate()
        assert process.wait(20) == 0


def test_a_ceiling_below_what_was_charged_before_it_is_no_broken_invariant(
    machine: Machine,
) -> None:
    machine.charge(machine.token(), "2026-11")
    machine.run("settings", "set", "account_daily_cap", "10.00usd")
    checks = {check["name"]: check for check in machine.json("doctor")["checks"]}
    assert checks["invariants"]["detail"] == "hold"
