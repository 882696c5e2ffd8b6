"""Who holds a lease, and whether that process is known to be gone.

Floor: beside the stores. Reads /proc on Linux; where it cannot tell, an owner counts as alive and
its lease runs to its end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

_PROC = Path("/proc")


def this_process(suffix: str) -> str:
    """Return the owner name of this process; `suffix` tells ledgers of one process apart."""
    return "|".join((*_host(), str(os.getpid()), _started(os.getpid()) or "", suffix))


def gone_owners(owners: Iterable[str], mine: str) -> frozenset[str]:
    """Return those of `owners` that are known to be gone: this host's, and not running."""
    return frozenset(owner for owner in owners if owner != mine and _is_gone(owner))


def _is_gone(owner: str) -> bool:
    parts, (machine, boot, namespace) = owner.split("|"), _host()
    if len(parts) != 6 or (parts[0], parts[2]) != (machine, namespace):
        return False
    if parts[1] != boot:
        return True
    return parts[3].isdigit() and bool(parts[4]) and _started(int(parts[3])) != parts[4]


def _host() -> tuple[str, str, str]:
    machine = f"{socket.gethostname()}/{_read(Path('/etc/machine-id'))}"
    boot = _read(_PROC / "sys/kernel/random/boot_id")
    return machine, boot, _read(_PROC / "self/ns/pid", Path.readlink)


def _started(pid: int) -> str | None:
    """Return the start time of `pid` in clock ticks, which tells a reused pid apart."""
    # The command may hold spaces and brackets: fields begin after the last ")"; 22 is starttime.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    # A zombie has ended; only its parent has not looked yet.
    return None if not fields or fields[0] == "Z" else fields[19]


def _read(path: Path, read: Callable[[Path], object] = Path.read_text) -> str:
    try:
        return str(read(path)).strip()
    except OSError:
        return ""
