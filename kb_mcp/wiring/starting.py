"""A start that does not look for garbage in what it has just imported.

Floor: wiring, at the bottom.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
