"""The machine: clocks, randomness and the names of this process, handed to everything pure.

Floor: serving. The only place that asks the operating system for time or chance.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from pathlib import Path

ID_BYTES = 7
NAME_BYTES = 12
PAGE_BYTES = 4096
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def host_ms() -> int:
    """Return this host's clock, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000  # noqa: TID251 this module is where clocks come from


def boottime_ms() -> int:
    """Return a clock that never goes back and counts suspended time, where there is one."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def boot_id() -> str:
    """Return the name of this boot of this machine, or nothing where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def new_id(prefix: str) -> str:
    """Return a new id: `prefix_` and 24 hex characters, the time (ms) in 11 and chance in 13.

    What is made at one time lies together in every index by id: among millions of rows a random
    place is one page more to read and to write. As UUIDs of version 7 do (RFC 9562, 5.7).
    """
    return f"{prefix}_{host_ms():011x}{_chance.take(ID_BYTES).hex()[:13]}"


def random_name() -> str:
    """Return 24 random hex characters, for ids of somebody else's kind."""
    return _chance.take(NAME_BYTES).hex()


def random_bytes(count: int) -> bytes:
    """Return `count` unpredictable bytes."""
    return secrets.token_bytes(count)


class _Chance(threading.local):
    """Random bytes for ids, asked for by the page: asking lets other threads in, each time.

    Each thread and each forked child begins with an empty page, so that no two share one. What must
    not repeat even in a machine that was cloned (nonces, secrets) comes from `random_bytes`.
    """

    page, at = b"", 0

    def take(self, count: int) -> bytes:
        """Return `count` bytes that nobody else gets."""
        if self.at + count > len(self.page):
            self.page, self.at = secrets.token_bytes(PAGE_BYTES), 0
        self.at += count
        return self.page[self.at - count : self.at]


_chance = _Chance()
os.register_at_fork(after_in_child=lambda: vars(_chance).clear())


def process_name(node_id: str | None) -> str:
    """Return a name for this process in the audit: the node's, with a suffix of its own."""
    node = node_id or socket.gethostname().split(".")[0][:32] or "node"
    return f"{node}-{os.getpid()}-{secrets.token_hex(3)}"
