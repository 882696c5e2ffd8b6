"""What commands print: one JSON document, or lines and tables for people.

Floor: at the bottom of the commands. Text from clients is stripped of everything that a terminal
would act on; rich is imported for a terminal alone.
Progress bars are drawn on a terminal's stderr alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from msgspec import Struct

    from kb_mcp.proxy.audit.verification import AuditReader


CELL_MAX = 200

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def print_json(document: object) -> None:
    """Print one JSON document."""
    import msgspec

    # Of ten thousand keys json.dumps, which indents in Python, takes a third of a second.
    click.echo(msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2))


def print_list(
    records: Sequence[Mapping[str, Any] | Struct],
    columns: Sequence[str],
    *,
    as_json: bool,
    empty: str,
) -> None:
    """Print records: an array of objects, or a table of `columns`; `empty` says there are none."""
    if as_json:
        print_json(list(records))
    elif not records:
        click.echo(empty)
    else:
        rows = [[cell(_field(record, name)) for name in columns] for record in records]
        _print_table([name.replace("_", " ") for name in columns], rows)


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one record: an object, or a line for each field that has a value."""
    if as_json:
        print_json(record)
        return
    shown = {name: value for name, value in record.items() if value not in (None, [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            for item in value:
                pairs = (f"{key}={cell(part)}" for key, part in item.items() if part is not None)
                click.echo(f"{name.rstrip('s'):<{width}}  {' '.join(pairs)}")
        else:
            click.echo(f"{name:<{width}}  {cell(value)}")


def cell(value: object) -> str:
    """Write a value for people; nothing in it moves a cursor or breaks a line."""
    from kb_mcp.proxy.audit.chain import clean_text

    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return clean_text(text, CELL_MAX)


def _field(record: Mapping[str, Any] | Struct, name: str) -> object:
    return record.get(name) if isinstance(record, Mapping) else getattr(record, name)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    for row in (columns, *rows):
        line = "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        # As Text, so that square brackets in a label are no markup.
        table.add_row(*(Text(text) for text in row))
    Console().print(table)


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
