"""When `make prove` and `make clients` last ran: both write it down here, and CI prints it.

python -m tests.last_runs                 # a line for each, with a warning where one is due
python -m tests.last_runs prove [ARG...]  # run pytest with these arguments, and write it down
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("last_runs.json")
TARGETS = ("prove", "clients")
DAYS_MAX = 30


def write(target: str, seconds: float, passed: int, failed: int, file: Path = FILE) -> None:
    """Write down that `make target` has just run to its end."""
    runs = _read(file)
    runs[target] = {
        "date": _today().isoformat(),
        "commit": _commit(),
        "seconds": round(seconds),
        "passed": passed,
        "failed": failed,
    }
    file.write_text(json.dumps(runs, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def lines(today: date, file: Path = FILE) -> list[str]:
    """Return a line for each target, followed by a warning where it failed or is due again."""
    runs = _read(file)
    told = []
    for target in TARGETS:
        if (run := runs.get(target)) is None:
            told.append(f"WARNING: make {target} has never run to its end")
            continue
        told.append(
            f"make {target} last ran {run['date']} at {run['commit']}: {run['passed']} passed, "
            f"{run['failed']} failed, in {run['seconds']} s"
        )
        if run["failed"] or not run["passed"]:
            told.append(f"WARNING: the last make {target} failed")
        if (days := (today - date.fromisoformat(run["date"])).days) > DAYS_MAX:
            told.append(f"WARNING: make {target} last ran {days} days ago; run it again")
    return told


class Counted:
    """A plugin of pytest that counts what passed and what did not, over all workers."""

    passed = failed = 0

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Take the counts of pytest's own last line."""
        stats = terminalreporter.stats
        self.passed = len(stats.get("passed", ()))
        self.failed = len(stats.get("failed", ())) + len(stats.get("error", ()))


def prove(arguments: Sequence[str], file: Path = FILE) -> int:
    """Run pytest, and write down what came of it unless it was interrupted."""
    counted, began = Counted(), time.monotonic()
    code = int(pytest.main([*arguments], plugins=[counted]))
    if code in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        write("prove", time.monotonic() - began, counted.passed, counted.failed, file)
    return code


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(command, cwd=FILE.parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "an unknown commit"


def _today() -> date:
    return datetime.now(UTC).date()  # noqa: TID251 - the day on which this very run ended


if __name__ == "__main__":
    if sys.argv[1:2] == ["prove"]:
        sys.exit(prove(sys.argv[2:]))
    sys.stdout.write("".join(f"{line}\n" for line in lines(_today())))
