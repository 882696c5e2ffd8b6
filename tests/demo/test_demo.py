from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from kb_mcp.demo.machines import DemoError, running
from kb_mcp.demo.scenarios import Row, print_verdict

ROOT = Path(__file__).resolve().parents[2]


def start_demo(folder: Path) -> subprocess.Popen[str]:
    # Settings of the user that would break the demo if they reached it.
    mine = {"KEYBRAKE_PROXY_URL": "http://127.0.0.1:9", "STRIPE_API_BASE": "http://127.0.0.1:9"}
    return subprocess.Popen(
        [sys.executable, "-m", "kb_mcp", "demo"],
        cwd=ROOT,
        env={**os.environ, **mine, "TMPDIR": str(folder)},  # noqa: TID251 - a user's own environment
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_demo_shows_each_failure_and_its_cure(tmp_path: Path) -> None:
    with start_demo(tmp_path) as demo:
        out, errors = demo.communicate()

    assert (demo.returncode, errors) == (0, ""), out + errors
    table = [re.split(r"  +", line) for line in out.splitlines() if re.match(r"[1-6] .*  ", line)]
    made = [(mode[0], handler, wanted, made) for mode, handler, wanted, made, _ in table]
    naive = ("sample, no key", "sample, key in params")
    rows = [(mode, handler, "1", "2") for mode in "123456" for handler in naive]
    rows += [(mode, "kb-mcp", "1", "1") for mode in "123456"]
    rows += [("3", "kb-mcp, audit key", "1", "1")]
    assert sorted(made) == sorted(rows)
    (refused,) = [row for row in table if row[1] == "kb-mcp, audit key"]
    assert refused[-1] == "charged once: supervisor told 403 vault_key_not_authorized"
    assert table[-1][-1] == "refunded once: the second call got the first refund"
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []


# Ended by a signal, as a shell says it: 128 and its number.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start_demo(tmp_path) as demo:
        assert demo.stdout is not None
        while "Playing" not in demo.stdout.readline():
            pass
        started = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(number)
        demo.communicate()

    assert demo.returncode == 128 + number
    assert len(started) > 5
    assert [child for child in started if child.is_running()] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("governed", "made", "answered", "passes"),
    [
        (True, 1, True, True),
        (True, 1, False, False),
        (True, 2, True, False),
        (True, 0, True, False),
        (False, 2, False, True),
        (False, 0, False, True),
        (False, 1, True, False),
    ],
)
def test_the_exit_code_follows_the_charges(
    governed: bool, made: int, answered: bool, passes: bool
) -> None:
    row = Row("1 mode", "handler", governed, made, answered, "note")
    shown = io.StringIO()

    code = print_verdict(Console(file=shown), [row])

    assert row.passes is passes
    assert code == (0 if passes else 1)
    assert ("NOT AS EXPECTED" in shown.getvalue()) is not passes


def test_a_terminal_gets_a_drawn_table() -> None:
    row = Row("1 mode", "kb-mcp", governed=True, made=1, answered=True, note="note")
    shown = io.StringIO()

    print_verdict(Console(file=shown, force_terminal=True, width=120), [row])

    assert "│" in shown.getvalue()
    assert "charged once: note" in shown.getvalue()


def test_a_process_that_does_not_start_says_why(tmp_path: Path) -> None:
    arguments = ["kb_mcp.demo.lambda_runtime", "kb_mcp.demo.naive:without_key"]
    with (
        running(arguments, {}, tmp_path / "function.log") as function,
        pytest.raises(DemoError, match="function ended: KeyError: 'STRIPE_SECRET_KEY'"),
    ):
        function.address("Agents:")


def test_what_a_handler_prints_is_no_outcome(tmp_path: Path) -> None:
    frame = '{"response": {"httpStatusCode": 200, "responseBody": {"application/json": '
    (tmp_path / "chatty.py").write_text(
        "import json\n"
        "def handler(event, context):\n"
        "    print('{}')\n"
        "    event['said'] / 1\n"
        f'    return json.loads(\'{frame}{{"body": "{{}}"}}}}}}}}\')\n'
    )
    arguments = ["kb_mcp.demo.lambda_runtime", "chatty:handler"]
    with running(arguments, {}, tmp_path / "chatty.log") as function:
        assert function.invoke({"said": 1}).status == 200
        assert function.invoke({"said": "one"}).error == "TypeError"
        assert function.invoke({"said": 1}).body == {}
