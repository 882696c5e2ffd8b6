"""A report as a picture: one panel for each column, a bar for each row, whiskers for quartiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_WIDTH_IN, _BAR_IN, _HEAD_IN = 9.0, 0.32, 0.8


def draw(document: dict[str, Any], file: Path) -> None:
    """Write the tables of a report's document to `file`, in the format that its name says.

    Needs matplotlib: pip install --require-hashes -r locks/bench.txt
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        (table["title"], column, rows)
        for table in document["tables"]
        for column in _columns(table)
        if (rows := {name: c[column] for name, c in table["rows"].items() if column in c})
    ]
    heights = [_HEAD_IN + _BAR_IN * len(rows) for _, _, rows in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(_WIDTH_IN, sum(heights)), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    for (title, column, rows), axis in zip(panels, axes[:, 0], strict=True):
        _bars(axis, f"{title}: {column}", rows)
    figure.suptitle(document["title"])
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _bars(axis: Any, title: str, rows: dict[str, dict[str, float]]) -> None:
    names = list(rows)[::-1]
    medians = [rows[name]["median"] for name in names]
    below = [rows[name]["median"] - rows[name]["q1"] for name in names]
    above = [rows[name]["q3"] - rows[name]["median"] for name in names]
    axis.barh(names, medians, xerr=[below, above], color="#3b7a57", ecolor="#222222", capsize=3)
    axis.set_title(title, loc="left", fontsize=9)
    axis.tick_params(labelsize=8)
    if min(medians) > 0 and max(medians) / min(medians) > 30:
        axis.set_xscale("log")


def _columns(table: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for cells in table["rows"].values() for name in cells))
