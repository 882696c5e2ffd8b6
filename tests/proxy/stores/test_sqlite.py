"""The SQLite file itself: shared by processes, and nothing that was committed is lost."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from typing_extensions import override

from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger, connect
from tests.in_process_proxy import InProcessProxy, error_of

READ_AND_CLOSE = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM t')"


def test_a_second_connection_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first = connect(path)
    first.execute("CREATE TABLE t (x)")
    connect(path).execute("SELECT * FROM t")
    # A process that comes and goes must not take itself for the last user of the file.
    subprocess.run([sys.executable, "-c", READ_AND_CLOSE, str(path)], check=True)
    first.execute("INSERT INTO t VALUES (1)")
    subprocess.run([sys.executable, "-c", READ_AND_CLOSE, str(path)], check=True)
    assert sqlite3.connect(path).execute("SELECT x FROM t").fetchall() == [(1,)]


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connect(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_commit_is_on_the_disk_before_it_is_answered(tmp_path: Path) -> None:
    connection = connect(tmp_path / "ledger.db")
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


class SaysNoAndDidIt(sqlite3.Connection):
    """A disk that has the commit and reports an error, once."""

    failing = True

    @override
    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        done = super().execute(sql, parameters)
        if sql == "COMMIT" and self.failing:
            self.failing = False
            raise sqlite3.OperationalError("disk I/O error")
        return done


def test_a_commit_that_errs_and_is_on_the_disk_stops_neither_chain_nor_charge(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        ledger = in_process.proxy.store.ledger
        assert isinstance(ledger, SqliteLedger)
        odd = sqlite3.connect(
            tmp_path / "ledger.db",
            isolation_level=None,
            check_same_thread=False,
            factory=SaysNoAndDidIt,
        )
        odd.row_factory = sqlite3.Row
        ledger._writer = odd  # noqa: SLF001 - a disk that lies
        refused = in_process.charge(key, period="2026-11")
        assert (refused.status_code, error_of(refused)) == (503, "ledger_unavailable")
        assert (in_process.charges(), in_process.operations()[0].state.value) == ([], "reserved")
        assert in_process.charge(key, customer="cus_B2", period="2026-11").status_code == 200
        seqs = [row["seq"] for row in in_process.audit()]
        assert seqs == list(range(1, len(seqs) + 1))


def test_what_nobody_foresaw_fails_alone_and_the_writer_goes_on(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        broken = AuditDraft(kind="admin", note=cast("str", object()))
        with pytest.raises(TypeError):
            in_process.run(
                in_process.proxy.store.ledger.transact(
                    lambda _: Refs(), lambda _: (None, Changes(audit=(broken,)))
                )
            )
        assert in_process.charge(key, period="2026-11").status_code == 200
