"""The MCP project's own conformance suite, in both protocol eras, over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.installs import environ, npm_script
from tests.proxy_processes import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BASELINES = Path(__file__).parent / "conformance"
ROW = re.compile(r"  - (\S+)  # \S.*\S")
REVISIONS = ("2026-07-28", "2025-11-25")
# What needs no prompt or resource of the suite's, and of its tools only those in diagnostics: it
# must pass whole.
FIXTURE_FREE = (
    *("server-initialize", "ping", "server-stateless", "tools-list", "resources-list"),
    *("prompts-list", "dns-rebinding-protection", "caching", "http-header-validation"),
    *("sep-2164-resource-not-found", "server-sse-multiple-streams"),
    "input-required-result-unsupported-methods",
    "input-required-result-validate-input",
)
# Each era has scenarios that the other has not.
NOT_IN = {
    "2026-07-28": {"server-initialize", "ping"},
    "2025-11-25": {
        *("server-stateless", "caching", "http-header-validation", "sep-2164-resource-not-found"),
        *("input-required-result-unsupported-methods", "input-required-result-validate-input"),
    },
}
FAILED = {"FAILURE", "WARNING"}
# How a server without the suite's fixtures answers, and what the suite says of it then.
NO_FIXTURE = re.compile(
    r"Unknown tool|Method not found|Resource not found"
    r"|Expected InputRequiredResult|could not get initial InputRequiredResult"
    r"|returned JSON-RPC error instead of re-requesting"
)


@pytest.fixture(scope="module")
def keyed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the agents' listener with a key in every request: the suite can send none."""
    with cluster(tmp_path_factory.mktemp("town")) as place:
        key = place.issue("--role", "billing-with-status")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.keyed"],
            cwd=Path(__file__).resolve().parents[2],
            env=place.environ() | {"VAULT_KEY_OF_THE_TEST": key},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def baseline(revision: str) -> list[str]:
    """Return the rows, each of which must say its reason."""
    lines = (BASELINES / f"{revision}.yml").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith(("#", "server:"))]
    matched = [ROW.fullmatch(row) for row in rows]
    assert all(matched), rows
    return [match[1] for match in matched if match]


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_suite_passes_but_for_its_own_fixtures(
    revision: str, keyed_url: str, npm: str, tmp_path: Path
) -> None:
    del npm
    suite = npm_script("@modelcontextprotocol/conformance", "dist/index.js")
    options = ["--url", f"{keyed_url}/mcp", "--requirements", revision, "-o", str(tmp_path)]
    expected = ["--expected-failures", str(BASELINES / f"{revision}.yml")]
    done = subprocess.run(
        [*suite, "server", *options, *expected],
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    reports = read_reports(tmp_path)

    # Every failure in the baseline is the suite's missing fixture, and no bug in its shadow.
    for name in baseline(revision):
        failed = [c for c in reports[name] if c["status"] in FAILED]
        assert failed, name
        assert all(NO_FIXTURE.search(json.dumps(each)) for each in failed), failed

    ran = [scenario for scenario in FIXTURE_FREE if scenario in reports]
    assert set(FIXTURE_FREE) - set(ran) == NOT_IN[revision]
    for scenario in ran:
        assert [c["id"] for c in reports[scenario] if c["status"] in FAILED] == []
        assert "SUCCESS" in {c["status"] for c in reports[scenario]}


@pytest.mark.parametrize("revision", REVISIONS)
def test_no_scenario_without_fixtures_is_in_the_baseline(revision: str) -> None:
    # Neither whole nor, as SCENARIO:CHECK, in part.
    excused = {name.partition(":")[0] for name in baseline(revision)}
    assert excused & set(FIXTURE_FREE) == set()


def read_reports(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the checks of every scenario; a folder is named server-SCENARIO-TIME."""
    reports = {}
    for file in folder.glob("server-*/checks.json"):
        name = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name.removeprefix("server-"))
        reports[name] = json.loads(file.read_text(encoding="utf-8"))
    return reports
