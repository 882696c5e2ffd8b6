"""The SQLite file itself: shared by processes, and nothing that was committed is lost."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

from kb_mcp.proxy.stores.sqlite import connect

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
