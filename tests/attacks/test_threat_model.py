"""The threat model names tests that exist, and counts what is launched."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.attacks.catalogue import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
ATTACKS_MIN = 300
# The rest of these files' tests are about the suite itself, not attacks.
_NOT_ATTACKS = frozenset({"test_threat_model.py", "test_secrets.py"})
_FAMILY_OF = {
    "test_answers.py": "answers",
    "test_connections.py": "connections",
    "test_evasion.py": "evasion",
    "test_listeners.py": "listeners",
    "test_mcp.py": "MCP",
}


def text() -> str:
    return (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def launched() -> Counter[str]:
    """Return how many attacks each family has, as pytest collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly"]
    listing = subprocess.run(
        [*command, "tests/attacks"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    counts: Counter[str] = Counter()
    for line in listing.splitlines():
        match = re.match(r"tests/attacks/(test_\w+\.py)::\w+(?:\[(.*)\])?$", line)
        if match is None or match[1] in _NOT_ATTACKS:
            continue
        family = (match[2] or "").partition(":")[0] if match[1] == "test_attacks.py" else None
        counts[family or _FAMILY_OF[match[1]]] += 1
    return counts


def test_the_document_counts_each_family_as_it_is(launched: Counter[str]) -> None:
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", text(), re.MULTILINE)
    written = {name: int(count) for name, count in rows}
    assert written == {**launched, "**all**": launched.total()}


def test_there_are_enough_attacks_and_no_family_outweighs_the_others(
    launched: Counter[str],
) -> None:
    assert launched.total() >= ATTACKS_MIN
    assert {name: n for name, n in launched.items() if n * 10 > launched.total()} == {}


def test_every_family_of_the_tables_has_an_accepted_neighbour() -> None:
    families = {attack.family for attack in ATTACKS}
    assert {attack.family for attack in ATTACKS if attack.code is None} == families


def test_no_two_attacks_have_one_name() -> None:
    names = Counter(attack.id for attack in ATTACKS)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_test_that_the_document_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text()))
    assert len(named) > 10
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{path}::{function}"
