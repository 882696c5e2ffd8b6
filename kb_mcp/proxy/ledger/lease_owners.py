"""Who holds a lease, and whether that process is known to be gone.

Floor: beside the stores. Reads /proc on Linux; where it cannot tell, an owner counts as alive and
its lease runs to its end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def this_process(suffix: str) -> str:
    """Return the owner name of this process; `suffix` tells ledgers of one process apart."""
    return "|".join((*_host(), str(os.getpid()), _started(os.getpid()) or "", suffix))


def gone_owners(owners: Iterable[str], mine: str) -> frozenset[str]:
    """Return those of `owners` that are known to be gone: this host's, and not running."""
    return frozenset(owner for owner in owners if owner != mine and _is_gone(owner))


def _is_gone(owner: str) -> bool:
    parts = owner.split("|")
    if len(parts) != 6:
        return False
    host = _host()
    if (parts[0], parts[2]) != (host[0], host[2]):
        return False
    if parts[1] != host[1]:
        return True
    if not parts[3].isdigit() or not parts[4]:
        return False
    return _started(int(parts[3])) != parts[4]


def _host() -> tuple[str, str, str]:
    return (
        f"{socket.gethostname()}/{_read(Path('/etc/machine-id'))}",
        _read(_PROC / "sys/kernel/random/boot_id"),
        _pid_namespace(),
    )


def _pid_namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return the start time of `pid` in clock ticks, which tells a reused pid apart."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command may hold spaces and brackets: fields begin after the last ")"; 22 is starttime.
    fields = stat.rpartition(")")[2].split()
    # A zombie has ended; only its parent has not looked yet.
    return None if fields[0] == "Z" else fields[19]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
