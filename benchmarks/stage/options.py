"""What every benchmark takes on its command line, and how long each form of it lasts."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stage.children import bounded
from stage.machine import tool

Form = Literal["full", "short", "smoke"]


@dataclass(frozen=True)
class Options:
    """The form (full, short or smoke), and what becomes of the report."""

    form: Form
    rounds: int
    as_json: bool
    plot: Path | None

    def of(self, full: float, short: float, smoke: float) -> float:
        """Return the number for this form."""
        return {"full": full, "short": short, "smoke": smoke}[self.form]

    def count(self, full: int, short: int, smoke: int) -> int:
        """Return the whole number for this form."""
        return {"full": full, "short": short, "smoke": smoke}[self.form]


def parse(document: str | None, *, rounds: tuple[int, int, int], within_s: int = 3600) -> Options:
    """Read the command line; `rounds` of the full, short and smoke form. Bounds the script's time.

    Usage: SCRIPT [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
    """
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_const", const="short", dest="form",
                      help="the form of `make bench`")  # fmt: skip
    form.add_argument("--smoke", action="store_const", const="smoke", dest="form",
                      help="seconds only: does it still run, and do the books agree?")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument("--json", action="store_true", help="one document instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="an SVG or PNG of the figures")
    given = parser.parse_args()
    chosen: Form = given.form or "full"
    default = rounds[("full", "short", "smoke").index(chosen)]
    bounded(within_s)
    return Options(chosen, given.rounds or default, given.json, given.plot)


def needs(*programs: str) -> None:
    """End the script with a word if a program of Debian's is absent."""
    for name in programs:
        if tool(name) is None:
            sys.exit(f"This needs {name}: apt-get install wrk nginx-light")
