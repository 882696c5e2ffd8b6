"""The collector pauses while a process starts, and is as it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PAUSE = """
import contextlib, gc
from kb_mcp.serving.process_setup import uncollected
{before}
with contextlib.suppress(ZeroDivisionError), uncollected():
    inside = gc.isenabled()
    {work}
print(inside, gc.isenabled(), gc.get_freeze_count() > 0)
"""
FIRST_EVENT = """
import gc
from kb_mcp.lambda_entry import handler
event = {"actionGroup": "billing", "function": "charge"}
handler(event, None)
after_first = gc.get_freeze_count()
made_since = [[] for _ in range(10_000)]
handler(event, None)
print(gc.isenabled(), after_first > 0, gc.get_freeze_count() - after_first < len(made_since))
"""


ELSEWHERE = {
    "KEYBRAKE_PROXY_URL": "http://127.0.0.1:9",  # nobody is asked: the arguments are missing
    "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_billing",
}


def said_by(code: str) -> str:
    # In a process of its own: what is frozen stays so.
    inherited = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=inherited | ELSEWHERE, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("work", ["pass", "1 / 0"])
def test_it_pauses_and_goes_on_whatever_happened(work: str) -> None:
    assert said_by(PAUSE.format(before="", work=work)) == "False True True"


def test_a_collector_that_was_off_stays_off() -> None:
    assert said_by(PAUSE.format(before="gc.disable()", work="pass")) == "False False True"


def test_only_the_first_event_of_a_lambda_environment_is_a_start() -> None:
    assert said_by(FIRST_EVENT) == "True True True"
