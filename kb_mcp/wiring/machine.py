"""The machine: clocks, randomness and the names of this process, handed to everything pure.

Floor: wiring. The only place that asks the operating system for time or chance.
"""

from __future__ import annotations

import os
import secrets
import socket
import time


def host_ms() -> int:
    """Return this host's clock, milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000  # noqa: TID251 this module is where clocks come from


def boottime_ms() -> int:
    """Return a clock that never goes back and counts suspended time, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


def new_id(prefix: str) -> str:
    """Return a random id, `prefix_` and 24 hex characters."""
    return f"{prefix}_{secrets.token_hex(12)}"


def random_bytes(count: int) -> bytes:
    """Return `count` unpredictable bytes."""
    return secrets.token_bytes(count)


def process_name(node_id: str | None) -> str:
    """Return a name for this process in the audit: the node's, with a suffix of its own."""
    node = node_id or socket.gethostname().split(".")[0][:32] or "node"
    return f"{node}-{os.getpid()}-{secrets.token_hex(3)}"
