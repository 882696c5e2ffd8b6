"""Datasette opens the audit with the metadata that the docs name: facets, and queries that run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.machine import CUSTOMER, Machine

ROOT = Path(__file__).resolve().parents[2]
METADATA = ROOT / "deploy" / "datasette" / "metadata.json"
DATABASE = json.loads(METADATA.read_text(encoding="utf-8"))["databases"]["keybrake"]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = Machine(tmp_path_factory.mktemp("datasette"))
    token = made.token("--agent", "<script>alert(1)</script>")
    assert made.charge(token, None).status_code == 200
    assert made.charge(token, None, amount=-1).status_code == 400
    made.saved()  # an immutable file is read without its write-ahead log
    return made


def served(machine: Machine, path: str) -> str:
    """Return what Datasette answers to a request, as the docs start it."""
    command = [sys.executable, "-m", "datasette", "--immutable", str(machine.store)]
    done = subprocess.run(
        [*command, "-m", str(METADATA), "--get", path],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def test_the_audit_opens_with_its_facets(machine: Machine) -> None:
    page: dict[str, Any] = json.loads(served(machine, "/keybrake/audit.json?_shape=objects"))
    facets = DATABASE["tables"]["audit"]["facets"]
    assert set(page["facet_results"]) == set(facets)
    assert "decision" in facets
    decided = {each["value"] for each in page["facet_results"]["decision"]["results"]}
    assert {"proceed", "refuse"} <= decided
    assert {row["id"] for row in page["rows"]} == {row["id"] for row in audit(machine)}


def audit(machine: Machine) -> list[dict[str, Any]]:
    return list(machine.json("audit", "list"))


def test_what_a_client_wrote_is_text_in_the_page(machine: Machine) -> None:
    page = served(machine, "/keybrake/keys")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page


@pytest.mark.parametrize("name", DATABASE["queries"])
def test_every_canned_query_runs(machine: Machine, name: str) -> None:
    path = f"/keybrake/{name}.json?_shape=array&customer={CUSTOMER}"
    assert isinstance(json.loads(served(machine, path)), list)
