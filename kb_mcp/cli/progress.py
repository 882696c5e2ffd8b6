"""How far long work has come: a bar on a terminal, and nothing anywhere else.

Floor: at the bottom of the commands. It is drawn on stderr, so that what a command prints stays
what it is; rich is imported for a terminal alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from kb_mcp.proxy.audit.verification import AuditReader

T = TypeVar("T")
# Drawing is told of each so many rows: a bar must not slow down what it shows.
STEP = 256
Advance = Callable[[int, int | None], None]


@contextmanager
def progress(label: str, *, shown: bool) -> Iterator[Advance]:
    """Draw a bar while the body runs, which tells how many are done, and of how many if known.

    Nothing is drawn unless `shown`, or where stderr is no terminal.
    """
    if not (shown and sys.stderr.isatty()):
        yield _nowhere
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(items: Iterable[T], advance: Advance, total: int | None) -> Iterator[T]:
    """Yield `items` and tell `advance` how many have passed; it never holds more than one."""
    done = 0
    for item in items:
        done += 1
        if done % STEP == 0:
            advance(done, total)
        yield item
    advance(done, total)


@dataclass(slots=True)
class CountedAudit:
    """A reader of the audit that tells how many rows of all its chains were walked."""

    reader: AuditReader
    advance: Advance
    total: int
    _done: int = 0

    def chain(self, node: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of one node, in the order of its chain."""
        for row in self.reader.chain(node):
            self._done += 1
            if self._done % STEP == 0:
                self.advance(self._done, self.total)
            yield row

    def nodes(self) -> list[dict[str, Any]]:
        """Return the registry of nodes, in its own order."""
        return self.reader.nodes()

    def writers(self) -> list[str]:
        """Return every node that has rows."""
        return self.reader.writers()


def _nowhere(_done: int, _total: int | None) -> None:
    """Say nothing."""
