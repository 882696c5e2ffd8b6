"""The first steps of the documentation, against a real `up`: each charges once, run twice."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.serving.machine import host_ms
from tests.cli.machine import Machine
from tests.proxy_processes import ProxyProcesses, cluster

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path) -> Iterator[ProxyProcesses]:
    with cluster(tmp_path) as built:
        yield built


def snippet(file: str, kind: str, word: str) -> str:
    """Return the one block of a page that has `word` in it."""
    text = (ROOT / file).read_text(encoding="utf-8")
    (found,) = [
        body for body in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) if word in body
    ]
    return str(found)


def test_the_first_charge_by_curl_is_made_once(here: ProxyProcesses) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    body = snippet("docs/index.md", "sh", "curl")
    line = body.replace("http://127.0.0.1:8787", here.start_proxy().url)
    assert line != body
    environ = here.environ() | {"BILLING_KEY": here.issue(), "no_proxy": "*"}
    answers = [
        subprocess.run(
            ["bash", "-c", line],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(here.charges()) == 1


def test_the_stripe_sdk_as_the_readme_shows_it_charges_once(here: ProxyProcesses) -> None:
    import stripe

    body = snippet("README.md", "python", "StripeClient")
    today = datetime.fromtimestamp(host_ms() // 1000, UTC)
    script = body.replace("http://127.0.0.1:8787", here.start_proxy().url)
    script = script.replace("2026-11", f"{today:%Y-%m}")
    names: dict[str, Any] = {"stripe": stripe, "VAULT_KEY": here.issue()}
    for _ in range(2):
        exec(script, names)
    assert len(here.charges()) == 1


def test_the_key_of_the_readme_for_mcp_over_http_has_every_tool(tmp_path: Path) -> None:
    line = snippet("README.md", "sh", "--role billing-with-refunds")
    policy = Machine(tmp_path).json(*shlex.split(line)[1:])["policy"]
    assert set(policy["allow"]) == {"POST /v1/charges", "GET /v1/charges/*", "POST /v1/refunds"}


def test_the_day_of_the_readme_runs_from_the_key_to_its_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    block = snippet("README.md", "sh", "approvals approve").replace("\\\n", "")
    issue, audit, approvals, approve, refunds, revoke, *looks = (
        shlex.split(line, comments=True)[1:]
        for line in block.splitlines()
        if line.startswith("kb-mcp ")
    )
    assert "export REFUND_KEY=" in block.partition("$REFUND_KEY")[0]
    issued = machine.json(*issue)
    assert machine.charge(issued["token"], "2026-11").status_code == 403
    assert "approval_required" in machine.run(*audit).output
    (waiting,) = machine.json(*approvals)
    machine.run(*(waiting["id"] if word == "ID" else word for word in approve))
    charged = machine.charge(issued["token"], "2026-11")
    assert charged.status_code == 200
    refund = machine.json(*refunds)["token"]
    given = machine.post("/v1/refunds", {"charge": charged.json()["id"]}, refund)
    assert given.json()["status"] == "succeeded"
    machine.run(*(issued["id"] if word == "ID" else word for word in revoke))
    assert machine.charge(issued["token"], amount=100, customer="cus_B").status_code == 401
    assert [look[0] for look in looks] == ["spend", "reconcile", "audit"]
    for look in looks:
        machine.run(*look)
