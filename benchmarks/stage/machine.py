"""This machine: its facts, its cores, and what a process spends of it."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import psutil

MIB = 1024 * 1024
_PAGE = 4096


def cores() -> tuple[int, int]:
    """Return the contender's core and the one for load and upstream (the same if there is one)."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def pinned(core: int, command: list[str]) -> list[str]:
    """Return `command`, held on one core."""
    return ["taskset", "--cpu-list", str(core), *command]


def cpu_s(roots: Iterable[int]) -> float:
    """Return the seconds of CPU, user and system, that processes and their children have spent."""
    times = [each.cpu_times() for each in family(roots)]
    return sum(each.user + each.system for each in times)


def resident_mib(roots: Iterable[int]) -> float:
    """Return the resident memory of processes and their children."""
    return sum(each.memory_info().rss for each in family(roots)) / MIB


def family(roots: Iterable[int]) -> list[psutil.Process]:
    """Return processes with all their children."""
    found = [psutil.Process(root) for root in roots]
    return [*found, *(child for each in found for child in each.children(recursive=True))]


def facts() -> dict[str, str]:
    """Return what a reader must know of this machine to compare figures."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 1024 / MIB:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "load at the start": f"{os.getloadavg()[0]:.1f} (1 min)",
        "fdatasync of 4 KiB": f"{fdatasync_us():.0f} µs (median of 200)",
    }


def fdatasync_us(folder: Path | None = None, times: int = 200, pause_s: float = 0) -> float:
    """Return the median time of a durable write of 4 KiB where temporary files are, in µs.

    The file is there already, as SQLite's log is after its first round: nothing but data is synced.
    Between two writes `pause_s` passes: a disk that has rested takes longer than one in full swing.
    """
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_PAGE * times))
        file.flush()
        os.fsync(file.fileno())
        for number in range(times):
            time.sleep(pause_s)
            begun = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * _PAGE, _PAGE * number)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(took)


def commit_us(folder: Path, pages: int, times: int = 100, pause_s: float = 0) -> float:
    """Return the median time of a durable commit of so many pages by SQLite itself, in µs."""
    took = []
    with closing(sqlite3.connect(folder / "commits.db", isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA synchronous = FULL")
        store.execute("CREATE TABLE IF NOT EXISTS pages (id INTEGER PRIMARY KEY, filled BLOB)")
        rows = [(number, bytes(_PAGE // 2 + 100)) for number in range(pages)]  # one to a page
        store.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?)", rows)
        for _ in range(times):
            store.execute("BEGIN IMMEDIATE")
            store.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?)", rows)
            time.sleep(pause_s)
            begun = time.perf_counter()
            store.execute("COMMIT")
            took.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(took)


def tool(name: str) -> str | None:
    """Return the path of a program, also where only root looks for it."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def version_line(command: list[str]) -> str:
    """Return the first line that a program says of its version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout + done.stderr).strip().partition("\n")[0]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
