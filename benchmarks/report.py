"""Run the benchmarks one after the other, and write what they found into docs/performance.md.

    python benchmarks/report.py [--short | --smoke] [--only NAME ...] [--write] [--loaded]
                                [--plots]

--write puts the tables between the markers of docs/performance.md; --loaded says there that other
work ran on the machine. Each benchmark's JSON stays in build/benchmarks/, with --plots a picture
beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stage import tables
from stage.children import TIED, bounded

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
FOUND = HERE.parent / "build" / "benchmarks"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SCRIPTS = ("tool_calls", "charges", "floor", "overload", "start", "workers", "big_store")
EACH_WITHIN_S = 7200


def main() -> None:
    """Run what was asked for; end with 1 if one of them broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--short", action="store_const", const="--short", dest="form")
    form.add_argument("--smoke", action="store_const", const="--smoke", dest="form")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, metavar="NAME")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--loaded", action="store_true")
    parser.add_argument("--plots", action="store_true")
    options = parser.parse_args()
    bounded(EACH_WITHIN_S * len(SCRIPTS))
    FOUND.mkdir(parents=True, exist_ok=True)
    broken = [name for name in options.only if not run(name, options.form)]
    if options.plots:
        from stage.plot import draw

        for name in options.only:
            if name not in broken:
                text = (FOUND / f"{name}.json").read_text(encoding="utf-8")
                draw(json.loads(text), FOUND / f"{name}.svg")
    if options.write:
        write([name for name in options.only if name not in broken], loaded=options.loaded)
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


def run(name: str, form: str | None) -> bool:
    """Run one benchmark, print its tables, and keep its JSON; say whether it came to its end."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *([form] if form else [])]
    begun = time.monotonic()
    done = subprocess.run(
        [*TIED, *command], stdout=subprocess.PIPE, text=True, timeout=EACH_WITHIN_S, check=False
    )
    if done.returncode != 0:
        print(f"{name} broke with {done.returncode}", file=sys.stderr)
        return False
    document = json.loads(done.stdout)
    (FOUND / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    print(f"{tables.as_text(document)}\n({time.monotonic() - begun:.0f} s)\n", flush=True)
    return True


def write(names: list[str], *, loaded: bool) -> None:
    """Put the tables of `names` into the page; those of other benchmarks stay as they are."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    parts = {section.partition("\n")[0]: f"## {section}".rstrip()
             for section in f"\n{old}".split("\n## ")[1:]}  # fmt: skip
    machine: dict[str, Any] = {}
    for name in names:
        document = json.loads((FOUND / f"{name}.json").read_text(encoding="utf-8"))
        machine = machine or document["machine"]
        parts[document["title"]] = tables.as_markdown(document)
    heading = "The machine of these figures"
    state = "Other work ran on it meanwhile." if loaded else "Nothing else ran on it."
    rows = [["what", "value"], *([name, value] for name, value in machine.items())]
    first = f"## {heading}\n\n{state}\n\n{tables.piped(rows)}"
    parts[heading] = first
    order = dict.fromkeys([heading, *(title_of(name) for name in SCRIPTS), *parts])
    body = "\n\n".join(parts[title] for title in order if title in parts)
    PAGE.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def title_of(name: str) -> str:
    """Return the title of a benchmark's report, as its last run gave it, or its name."""
    file = FOUND / f"{name}.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["title"]) if file.exists() else name


if __name__ == "__main__":
    main()
