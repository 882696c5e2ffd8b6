"""Long work shows how far it has come on a terminal, and nowhere else; it holds no whole audit."""

from __future__ import annotations

import os
import pty
import sqlite3
import subprocess
import sys

import pytest

from kb_mcp.cli.output import counted
from kb_mcp.proxy.audit.chain import AUDIT_COLUMNS, Journal, derive_key
from kb_mcp.proxy.ledger.records import AuditDraft
from kb_mcp.proxy.stores.binding import add_node
from kb_mcp.proxy.stores.rows import load_queries
from tests.cli.machine import Machine

ROWS = 30_000
LONG_AGO_MS = 1_750_000_000_000
NOTE = "n" * 1_500
ALLOWED_KB = 30_000


def drawn(machine: Machine, *args: str) -> tuple[str, str]:
    """Run a command whose stderr is a terminal; return what was printed, and what was drawn."""
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kb_mcp", *args],
        env=machine.process_env | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE, stderr=writer, text=True,
    ) as process:  # fmt: skip
        os.close(writer)
        seen = b""
        while chunk := _read(reader):
            seen += chunk
        assert process.stdout is not None
        printed = process.stdout.read()
        assert process.wait(60) == 0, seen
    os.close(reader)
    return printed, seen.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""  # the other end is closed


@pytest.fixture
def busy(machine: Machine) -> Machine:
    token = machine.token()
    machine.charge(token, "2026-11")
    machine.fault("drop_before")
    machine.charge(token, "2026-10")
    machine.advance(3600)
    return machine


LONG = [
    (("audit", "verify"), "Verifying"),
    (("audit", "archive", "--before", "2100-01-01", "--to", "{file}"), "Archiving"),
    (("recover",), "Looking up"),
    (("reconcile", "--since", "30d"), "Reading charges"),
    (("adopt", "--since", "30d"), "Adopting"),
]


@pytest.mark.parametrize(("args", "label"), LONG)
def test_long_work_draws_a_bar_on_a_terminal_and_none_with_json(
    busy: Machine, args: tuple[str, ...], label: str
) -> None:
    words = [word.format(file=busy.folder / "moved.jsonl") for word in args]
    printed, seen = drawn(busy, *words, "--json")
    assert (printed[0] in "[{", label in seen) == (True, False)
    words = [word.format(file=busy.folder / "more.jsonl") for word in args]
    if args[1:2] == ("archive",):
        busy.token()  # something more to move
    printed, seen = drawn(busy, *words)
    assert label in seen
    assert "\x1b" not in printed


def test_an_export_draws_beside_what_it_writes(busy: Machine) -> None:
    printed, seen = drawn(busy, "audit", "export", "--format", "jsonl")
    assert "Exporting" in seen
    assert printed == busy.run("audit", "export", "--format", "jsonl").stdout


def test_without_a_terminal_nothing_is_drawn(busy: Machine) -> None:
    assert busy.run("audit", "verify").stderr == ""
    assert busy.run("audit", "export", "--format", "csv").stderr == ""


def test_what_is_counted_is_passed_on_one_by_one() -> None:
    told: list[tuple[int, int | None]] = []
    taken = iter(range(10_000))
    walked = counted(taken, lambda done, total: told.append((done, total)), 600)
    assert next(walked) == 0
    assert next(taken) == 1  # nothing was taken ahead
    assert sum(1 for _ in walked) == 9_998
    assert told[-1] == (9_999, 600)


def chain_of(machine: Machine, node: str, rows: int) -> None:
    """Write a chain of so many large rows, as a process that has long ended left it."""
    master = machine.store.with_name("keybrake.db.master-key").read_text().strip().encode()
    journal = Journal(node, derive_key(master, "audit"))
    into = f"audit ({', '.join(AUDIT_COLUMNS)}) VALUES ({', '.join('?' for _ in AUDIT_COLUMNS)})"
    drafts = (AuditDraft(kind="admin", decision="note", note=NOTE) for _ in range(rows))
    store = sqlite3.connect(machine.store, isolation_level=None)
    store.row_factory = sqlite3.Row
    store.execute("BEGIN IMMEDIATE")
    add_node(store, load_queries("sqlite"), node, journal.chain_key, LONG_AGO_MS)
    store.executemany(
        f"INSERT INTO {into}", (journal.values(draft, LONG_AGO_MS) for draft in drafts)
    )
    store.execute("COMMIT")
    store.close()


def peak_kb(machine: Machine, *args: str) -> int:
    """Return how much memory a command needed at most."""
    with subprocess.Popen(
        [sys.executable, "-m", "kb_mcp", *args],
        env=machine.process_env, stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


@pytest.mark.slow
def test_an_audit_larger_than_memory_is_verified_exported_and_archived(machine: Machine) -> None:
    machine.token()
    new = machine.folder / "moved.jsonl"
    commands = [
        ("audit", "verify"),
        ("audit", "export", "--format", "csv"),
        ("audit", "export", "--format", "jsonl", "--since", "2000-01-01"),
        ("audit", "archive", "--before", "2100-01-01", "--to", str(new)),
    ]
    small = [peak_kb(machine, *command) for command in commands[:-1]]
    chain_of(machine, "long-ago", ROWS)
    large = [peak_kb(machine, *command) for command in commands]
    assert len(new.read_bytes()) > ROWS * len(NOTE)
    assert [each - small[0] < ALLOWED_KB for each in large] == [True] * 4, (small, large)
