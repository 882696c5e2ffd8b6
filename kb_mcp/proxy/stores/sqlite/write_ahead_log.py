"""The write-ahead log of a SQLite store: how large it is, and how it is made small again.

Floor: a store. SQLite copies the log into the file by itself, but it begins the log anew only
while nobody reads an older state, and it never makes the log's file smaller unless it is told.
Sources: sqlite.org/wal.html (avoiding excessively large WAL files), sqlite.org/pragma.html.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024  # what the file of an emptied log may keep
LARGE_BYTES: Final = 64 * 1024 * 1024  # beyond it somebody reads an older state, and holds it
LOOKED_AT_EVERY: Final = 64  # commits


class WriteAheadLog:
    """The log beside the store at `path`, emptied over the writer's own connection."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        """Bound the file of an emptied log."""
        self._path = path
        self._writer = writer
        self._commits = 0
        writer.execute(f"PRAGMA journal_size_limit = {KEPT_BYTES}")

    def committed(self) -> None:
        """Note a commit; now and then, empty a log that has become large."""
        self._commits += 1
        if self._commits % LOOKED_AT_EVERY == 0 and log_bytes(self._path) > LARGE_BYTES:
            self.empty()

    def rest(self) -> None:
        """Empty a log that is larger than it needs to be, while nobody waits for the writer."""
        if log_bytes(self._path) > KEPT_BYTES:
            self.empty()

    def empty(self) -> None:
        """Copy the log into the file and cut it to nothing, unless somebody reads or writes."""
        held_ms = self._writer.execute("PRAGMA busy_timeout").fetchone()[0]
        try:
            # Whoever reads an older state may do so for hours: nobody waits for them.
            self._writer.execute("PRAGMA busy_timeout = 0")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error:
            return  # tried again later; what cannot be written shows at the next commit
        finally:
            self._writer.execute(f"PRAGMA busy_timeout = {held_ms}")


def log_bytes(path: Path) -> int:
    """Return the size of the log beside the store at `path`; 0 where there is none."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0
