"""How a process is set up to start fast, and then to serve.

Floor: serving, at the bottom.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The writer's thread computes while the event loop asks for the lock some ten times a request:
# at CPython's own 5 ms a turn, a busy process would answer nobody for seconds.
LOCK_TURN_S = 0.0005
GARBAGE_AFTER = 50_000


@contextmanager
def uncollected() -> Iterator[None]:
    """Import and build without the collector, and keep what is there from its later rounds.

    Once in a process, and for one that serves from then on. Importing makes much that stays and
    nearly no garbage; going through all of it two hundred times was a tenth of a start.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def ready_to_serve() -> None:
    """Set the interpreter up for a server: short turns of its lock, few walks for garbage.

    What is loaded by now stays for good, and is not walked again.
    """
    sys.setswitchinterval(LOCK_TURN_S)
    gc.collect()
    gc.freeze()
    collect_seldom()


def collect_seldom() -> None:
    """Walk for garbage once in GARBAGE_AFTER new objects: ten thousand rows are none of it."""
    gc.set_threshold(GARBAGE_AFTER)
