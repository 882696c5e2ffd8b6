from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys

import pytest

from tests.cli.machine import Machine


def test_every_act_and_request_leaves_a_row(machine: Machine) -> None:
    token = machine.token()
    machine.charge(token, "2026-11")
    rows = machine.json("audit", "list")
    assert [row["kind"] for row in rows] == ["admin", "decision", "outcome"]
    assert machine.json("audit", "list", "--customer", "cus_Nobody") == []
    assert len(machine.json("audit", "list", "--key", token.split("_")[2], "--limit", "2")) == 2
    assert machine.json("audit", "list", "--since", "1h", "--until", "2001-01-01") == []
    machine.run("audit", "list", "--since", "yesterday", code=2)


def test_an_untouched_audit_verifies(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    told = machine.run("audit", "verify")
    assert told.stdout == "The audit holds. Rows: 3. Chains: 2. Held against heads: 2.\n"
    assert told.stderr == ""
    found = {"ok": True, "rows": 3, "chains": 2, "heads": 2, "broken": []}
    assert machine.json("audit", "verify") == found


def test_chains_without_a_head_to_compare_with_are_told(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    machine.tamper("DELETE FROM audit WHERE kind = 'outcome'")
    assert "tail_cut" in machine.run("audit", "verify", code=1).stderr
    for head in machine.store.with_name(f"{machine.store.name}.heads").glob("*.json"):
        head.unlink()
    told = machine.run("audit", "verify")
    assert "Held against heads: 0." in told.stdout
    assert told.stderr == (
        "Warning: chains without an exported head: 2 of 2. Whether their last rows were cut off "
        "cannot be told.\n"
    )
    assert machine.json("audit", "verify")["heads"] == 0


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE audit SET amount = 1 WHERE kind = 'decision'", "edited"),
        ("UPDATE audit SET note = 'x' WHERE kind = 'admin'", "edited"),
        ("UPDATE audit SET time = 'then' WHERE kind = 'outcome'", "edited"),
        ("UPDATE audit SET id = 'other:1' WHERE kind = 'outcome'", "edited"),
        ("DELETE FROM audit WHERE kind = 'decision'", "out_of_order"),
        ("DELETE FROM audit WHERE kind = 'outcome'", "tail_cut"),
        ("DELETE FROM audit WHERE kind = 'admin'", "tail_cut"),
        ("UPDATE nodes SET started_at = 'then' WHERE position = 1", "registry_edited"),
        ("DELETE FROM nodes WHERE position = 1", "registry_edited"),
    ],
)
def test_what_was_changed_is_found_and_named(machine: Machine, statement: str, reason: str) -> None:
    machine.charge(machine.token(), "2026-11")
    machine.tamper(statement)
    outcome = machine.json("audit", "verify", code=1)
    assert outcome["ok"] is False
    assert reason in {each["reason"] for each in outcome["broken"]}
    assert "breaks at row" in machine.run("audit", "verify", code=1).stderr


def test_an_archived_audit_goes_on_verifying(machine: Machine) -> None:
    token = machine.token()
    machine.charge(token, "2026-11")
    machine.charge(token, "2026-10")
    file = machine.folder / "old.jsonl"
    done = machine.json("audit", "archive", "--before", "2100-01-01", "--to", str(file))
    archived = [json.loads(line) for line in file.read_text().splitlines()]
    assert done["rows"] == len(archived) > 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert not {row["id"] for row in archived} & {
        row["id"] for row in machine.json("audit", "list")
    }
    assert machine.json("audit", "verify")["ok"] is True
    assert machine.charge(token, "2026-09").status_code == 200
    assert machine.json("audit", "list")[-1]["kind"] == "outcome"
    machine.tamper("UPDATE audit SET amount = 1 WHERE amount = 2900")
    machine.run("audit", "verify", code=1)


def test_the_doctor_misses_no_decision_that_was_archived(machine: Machine) -> None:
    machine.charge(machine.token("--daily-cap", "100.00usd"), "2026-11")
    to = str(machine.folder / "old.jsonl")
    machine.json("audit", "archive", "--before", "2100-01-01", "--to", to)
    assert machine.json("doctor")["ok"] is True


def test_nothing_is_archived_from_a_broken_audit_or_into_an_old_file(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    file = machine.folder / "old.jsonl"
    file.write_text("mine")
    machine.run("audit", "archive", "--before", "2100-01-01", "--to", str(file), code=1)
    assert file.read_text() == "mine"
    before = machine.json("audit", "list")
    machine.tamper("UPDATE audit SET amount = 1 WHERE kind = 'decision'")
    new = machine.folder / "new.jsonl"
    machine.run("audit", "archive", "--before", "2100-01-01", "--to", str(new), code=1)
    assert not new.exists()
    assert len(machine.json("audit", "list")) == len(before)


def test_the_audit_still_refuses_deletion_after_archiving(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    file = machine.folder / "old.jsonl"
    machine.run("audit", "archive", "--before", "2100-01-01", "--to", str(file))
    # The trigger has to be there to be dropped.
    machine.tamper("SELECT 1")


def test_the_list_says_which_agent_asked(machine: Machine) -> None:
    machine.charge(machine.token("--agent", "nightly"), "2026-11")
    head, *_, last = machine.run("audit", "list").stdout.splitlines()
    assert "agent id" in head
    assert last[head.index("agent id") :].startswith("nightly ")


def test_exports_neutralise_what_a_client_wrote(machine: Machine) -> None:
    machine.token("--agent", "=cmd()|evil")
    machine.run("keys", "revoke", machine.token().split("_")[2], "--reason", "=1+1\x1b[2J")
    table = list(
        csv.DictReader(io.StringIO(machine.run("audit", "export", "--format", "csv").stdout))
    )
    assert table[-1]["note"] == "'=1+1[2J"
    assert "\x1b" not in machine.run("audit", "list").stdout


def test_a_siem_gets_elastic_common_schema(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    lines = machine.run("audit", "export", "--format", "ecs").stdout.splitlines()
    decision = json.loads(lines[1])
    assert decision["event"]["action"] == "decision"
    assert decision["http"]["request"]["method"] == "POST"
    assert decision["keybrake"]["amount"] == 2900
    assert machine.run("audit", "export", "--format", "jsonl", "--since", "2100-01-01").stdout == ""


def test_tail_shows_people_a_line_of_what_each_row_has(machine: Machine) -> None:
    machine.run("operators", "add", "maria")
    command = [sys.executable, "-m", "kb_mcp", "audit", "tail"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=machine.process_env
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:] == ["admin", "operator_add", "cli", "maria"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_tail_shows_what_is_there_and_what_comes(machine: Machine) -> None:
    machine.token()
    command = [sys.executable, "-m", "kb_mcp", "audit", "tail", "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.process_env,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["decision"] == "issue"
        machine.run("operators", "add", "maria")
        assert json.loads(process.stdout.readline())["decision"] == "operator_add"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
