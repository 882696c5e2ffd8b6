"""A report's document as text for a terminal, and as Markdown for docs/performance.md."""

from __future__ import annotations

from typing import Any

Grid = list[list[str]]


def as_text(document: dict[str, Any]) -> str:
    """Return tables, targets, configurations and notes for a terminal."""
    parts = [f"{document['title']} ({document['form']} form, {document['rounds']} rounds)"]
    parts += ["; ".join(f"{name}: {value}" for name, value in document["machine"].items())]
    for table in document["tables"]:
        parts.append(f"\n{table['title']}: median (quartiles)\n{_aligned(_grid(table))}")
    if document["targets"]:
        parts.append(f"\nTargets\n{_aligned(_targets(document))}")
    if document["contenders"]:
        lines = [f"  {name}: {config}" for name, config in document["contenders"].items()]
        parts.append("\n".join(["\nConfigurations", *lines]))
    return "\n".join([*parts, *(f"Note: {note}" for note in document["notes"])])


def as_markdown(document: dict[str, Any]) -> str:
    """Return the same as Markdown, a section with a heading of the second level."""
    parts = [f"## {document['title']}",
             f"`benchmarks/{document['name']}.py`, {document['form']} form, "
             f"{document['rounds']} rounds; medians, quartiles in brackets."]  # fmt: skip
    for table in document["tables"]:
        parts += [f"**{table['title']}**", piped(_grid(table))]
    if document["targets"]:
        parts += ["**Targets**", piped(_targets(document))]
    if document["contenders"]:
        parts.append("\n".join(f"- {n}: {c}" for n, c in document["contenders"].items()))
    if document["notes"]:
        parts.append("\n".join(f"- {note}" for note in document["notes"]))
    return "\n\n".join(parts)


def number(value: float) -> str:
    """Return a figure with as many digits as it is worth."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 or size == 0 else f"{value:.4f}"


def figure(cell: dict[str, float]) -> str:
    """Return a median with its quartiles."""
    if cell["samples"] < 2:
        return number(cell["median"])
    return f"{number(cell['median'])} ({number(cell['q1'])}-{number(cell['q3'])})"


def verdict(target: dict[str, Any]) -> str:
    """Say whether a target is met, and by how much."""
    share = target["of_limit"]
    if target["met"]:
        room = share if target["relation"] == "≥" else 1 / share if share else float("inf")
        return f"met, {number(room)} times over" if room >= 1.005 else "met, just"
    return f"NOT met: {share:.0%} of it"


def piped(grid: Grid) -> str:
    """Return a grid, its head first, as a table of Markdown."""
    head, *rows = grid
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _grid(table: dict[str, Any]) -> Grid:
    columns = list(dict.fromkeys(name for cells in table["rows"].values() for name in cells))
    rows = [
        [name, *(figure(cells[column]) if column in cells else "" for column in columns)]
        for name, cells in table["rows"].items()
    ]
    grid = [["", *columns], *rows]
    # One row of many columns reads better as one column.
    return [list(line) for line in zip(*grid, strict=True)] if len(rows) == 1 else grid


def _targets(document: dict[str, Any]) -> Grid:
    rows = [
        [each["what"], f"{each['relation']} {number(each['limit'])}", figure(each), verdict(each)]
        for each in document["targets"]
    ]
    return [["what", "target", "got", ""], *rows]


def _aligned(grid: Grid) -> str:
    widths = [max(len(row[place]) for row in grid) for place in range(len(grid[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in grid
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)
