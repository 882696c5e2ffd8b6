"""The table at the end: a drawn one on a terminal, lines of plain text elsewhere.

Floor: the demo, above scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kb_mcp.demo.scenarios import WANTED, Row

if TYPE_CHECKING:
    from rich.console import Console

_COUNTED: Final = {"charged": "charges", "refunded": "refunds"}


def print_verdict(console: Console, rows: Sequence[Row]) -> int:
    """Print the table and what it shows. Returns the exit code."""
    for act in _COUNTED:
        of_act = [row for row in rows if row.act == act]
        if of_act:
            console.print()
            (_draw if console.is_terminal else _write)(console, of_act)
    failed = [row for row in rows if not row.passes]
    for row in failed:
        wanted = f"{row.act} once" if row.governed else "a failure to show"
        _say(console, f"NOT AS EXPECTED: {row.mode}, {row.handler}: wanted {wanted}.")
    _say(console, "Charges and refunds were counted in the sandbox's own lists, over HTTP.")
    return 1 if failed else 0


def _cells(row: Row) -> tuple[str, ...]:
    return (row.mode, row.handler, str(WANTED), str(row.made), row.verdict)


def _headings(rows: Sequence[Row]) -> tuple[str, ...]:
    counted = _COUNTED[rows[0].act]
    return ("failure mode", "handler", f"{counted} wanted", f"{counted} made", "verdict")


def _draw(console: Console, rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table()
    for heading in _headings(rows):
        counts = heading.endswith((" wanted", " made"))
        table.add_column(
            heading.replace(" ", "\n") if counts else heading,
            justify="right" if counts else "left",
            overflow="fold",
        )
    for before, row in zip((None, *rows), rows, strict=False):
        mode, *cells = _cells(row)
        if before is None or before.mode != row.mode:
            table.add_section()
        else:
            mode = ""
        table.add_row(mode, *cells, style="green" if row.made == WANTED else "red")
    console.print(table)


def _write(console: Console, rows: Sequence[Row]) -> None:
    lines = [_headings(rows), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        _say(console, "  ".join(padded).rstrip())


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
