"""What commands print: one JSON document, or lines and tables for people.

Floor: at the bottom of the commands. Text from clients is stripped of everything that a terminal
would act on; rich is imported for a terminal alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from msgspec import Struct

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
