"""What a benchmark found: samples by table, row and column; medians, spread, ratios, targets."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from stage import tables
from stage.machine import facts
from stage.options import Options, needs, parse

Relation = Literal["≥", "≤"]


class Report:
    """One benchmark's findings. Samples of one round share their index in every list."""

    def __init__(self, name: str, title: str, options: Options) -> None:
        """Begin; `name` is the script's."""
        self.name = name
        self.title = title
        self.options = options
        self.machine = facts()
        self.contenders: dict[str, str] = {}
        self.tables: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.targets: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def contender(self, name: str, config: str) -> None:
        """Say how a contender is set up."""
        self.contenders[name] = config

    def sample(self, table: str, row: str, **cells: float) -> None:
        """Add one round's figures to a row; columns are named with their units.

        In names `_per_` is written for a slash, `_percent` for its sign, a lower dash for a blank.
        """
        found = self.tables.setdefault(table, {}).setdefault(row, {})
        for column, value in cells.items():
            found.setdefault(_column(column), []).append(float(value))

    def samples(self, table: str, row: str, column: str) -> list[float]:
        """Return a cell's samples, round by round."""
        return self.tables[table][row][_column(column)]

    def has(self, table: str, row: str) -> bool:
        """Say whether a row has figures."""
        return row in self.tables.get(table, {})

    def ratios(self, table: str, column: str, row: str, base: str) -> list[float]:
        """Return `row` over `base`, round by round."""
        pairs = zip(
            self.samples(table, row, column), self.samples(table, base, column), strict=False
        )
        return [value / other for value, other in pairs if other]

    def ratio_column(self, table: str, column: str, base: str) -> None:
        """Add a column that says how often `base` each row is, paired by round."""
        for row in self.tables[table]:
            if _column(column) in self.tables[table][row]:
                name = f"{_column(column)} / {base}"
                self.tables[table][row][name] = self.ratios(table, column, row, base)

    def target(self, what: str, values: list[float], relation: Relation, limit: float) -> None:
        """Hold the median of `values` against a target."""
        if not values:
            return
        got = median(values)
        met = got >= limit if relation == "≥" else got <= limit
        self.targets.append({"what": what, **spread(values), "relation": relation,
                             "limit": limit, "met": met, "of_limit": got / limit})  # fmt: skip

    def note(self, text: str) -> None:
        """Add a sentence below the tables; standard error has it at once."""
        self.notes.append(text)
        self.progress(text)

    def progress(self, text: str) -> None:
        """Say on standard error how far it is."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def document(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "name": self.name,
            "title": self.title,
            "form": self.options.form,
            "rounds": self.options.rounds,
            "machine": self.machine,
            "contenders": self.contenders,
            "tables": [
                {"title": title, "rows": {
                    row: {column: spread(values) for column, values in cells.items() if values}
                    for row, cells in rows.items()}}
                for title, rows in self.tables.items()
            ],
            "targets": self.targets,
            "notes": self.notes,
        }  # fmt: skip

    def finish(self) -> None:
        """Print the report, and draw it where that was asked for."""
        document = self.document()
        if self.options.as_json:
            print(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            print(tables.as_text(document))
        if self.options.plot is not None:
            from stage.plot import draw

            draw(document, self.options.plot)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, quartiles and number of samples."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    # With two samples the quartiles would lie outside of what was measured.
    low, high = max(low, min(values)), min(high, max(values))
    return {"median": median(values), "q1": low, "q3": high, "samples": len(values)}


@contextmanager
def measured(
    name: str,
    title: str,
    document: str | None,
    *,
    rounds: tuple[int, int, int],
    within_s: int,
) -> Iterator[tuple[Options, Report, Path]]:
    """Read the command line, lend a folder to the block, and print what it reported at its end."""
    options = parse(document, rounds=rounds, within_s=within_s)
    needs("wrk", "nginx")
    report = Report(name, title, options)
    with tempfile.TemporaryDirectory(prefix="kb-mcp-bench-") as folder:
        yield options, report, Path(folder)
    report.finish()


def _column(name: str) -> str:
    return (
        name.replace("CPU_us", "CPU_µs")
        .replace("_per_", "/")
        .replace("_percent", "_%")
        .replace("_", " ")
    )
