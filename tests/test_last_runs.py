from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

from tests.last_runs import FILE, TARGETS, lines, prove, write

DAY = date(2026, 11, 28)


def test_a_run_is_told_with_its_day_its_commit_and_its_counts(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    write("prove", 1799.6, 812, 0, file)
    write("clients", 60, 30, 0, file)
    run = json.loads(file.read_text())["prove"]
    today = datetime.now(UTC).date()  # noqa: TID251 - the day on which it was written
    assert lines(today, file)[0] == (
        f"make prove last ran {run['date']} at {run['commit']}: 812 passed, 0 failed, in 1800 s"
    )
    assert len(lines(today, file)) == 2


def test_a_run_that_failed_is_old_or_never_was_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    run = {"date": "2026-10-28", "commit": "abc1234", "seconds": 9, "passed": 8, "failed": 1}
    file.write_text(json.dumps({"prove": run}))
    assert lines(DAY, file)[1:] == [
        "WARNING: the last make prove failed",
        "WARNING: make prove last ran 31 days ago; run it again",
        "WARNING: make clients has never run to its end",
    ]
    file.write_text(json.dumps({"prove": run | {"date": "2026-10-29", "failed": 0}}))
    assert len(lines(DAY, file)) == 2


def test_what_passed_and_what_failed_is_counted_and_an_interrupted_run_is_not_written(
    tmp_path: Path,
) -> None:
    tests = tmp_path / "test_three.py"
    tests.write_text("def test_yes(): pass\ndef test_also(): pass\ndef test_no(): assert False\n")
    file = tmp_path / "runs.json"
    quiet = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tests)]
    assert prove(quiet, file) == 1
    run = json.loads(file.read_text())["prove"]
    assert (run["passed"], run["failed"]) == (2, 1)
    assert prove([*quiet, "-k", "nothing_of_that_name"], tmp_path / "none.json") == 5
    assert not (tmp_path / "none.json").exists()


def test_the_committed_file_names_the_targets_alone() -> None:
    assert set(json.loads(FILE.read_text())) <= set(TARGETS)
