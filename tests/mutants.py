"""`python -m tests.mutants`: what became of the mutants of the last `make mutate`, by module."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code

MUTANTS = Path(__file__).resolve().parents[1] / "mutants"


def main() -> None:
    """Print a line for each module, then a line for all of them; what was not tried is left out."""
    total: Counter[str] = Counter()
    for path in sorted(MUTANTS.glob("kb_mcp/**/*.py.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].values()
        found = Counter(status_by_exit_code[code] for code in codes if code is not None)
        if found:
            print(line(path.name.removesuffix(".py.meta"), found))  # noqa: T201 - its output
        total += found
    print(line("together", total))  # noqa: T201 - its output


def line(name: str, found: Counter[str]) -> str:
    """Write what became of the mutants of one module, the killed ones first."""
    rest = ", ".join(f"{found[status]} {status}" for status in sorted(found.keys() - {"killed"}))
    return f"{name:<13} {found['killed']:>5} of {found.total():>5} killed  {rest}".rstrip()


if __name__ == "__main__":
    main()
