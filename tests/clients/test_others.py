"""Some of other people's clients, and the page of them all. `make clients` runs every one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import or_skip
from tests.clients.others.bridges import Place, place_on, tried
from tests.clients.others.catalogue import OTHERS, SIX, Other
from tests.clients.others.environments import installed, lock_of, version_of
from tests.clients.others.report import NotInstalled, page
from tests.clients.others.trial import Outcome
from tests.proxy_processes import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
CHOSEN = [other for other in OTHERS if other.name in SIX]
# One for each language: the others take a minute to install and half a minute to start.
EVERY_RUN = {"OpenAI Agents, strict", "MCP SDK for TypeScript"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("others")
    with cluster(folder) as running:
        yield place_on(running, folder)


def test_six_are_chosen() -> None:
    assert len(CHOSEN) == len(SIX) == 6
    assert {other.name for other in CHOSEN} > EVERY_RUN


@pytest.mark.parametrize(
    ("other", "transport"),
    [
        pytest.param(
            other, transport, marks=() if other.name in EVERY_RUN else (pytest.mark.prove,)
        )
        for other in CHOSEN
        for transport in other.transports
    ],
    ids=lambda each: each if isinstance(each, str) else each.name,
)
def test_a_client_charges_once_by_the_upstreams_count(
    other: Other, transport: str, place: Place
) -> None:
    or_skip(lambda: installed(other))
    outcome = tried(other, transport, place)
    assert outcome.charged_once, (outcome.counted, outcome.failed, outcome.said)


@pytest.mark.parametrize("other", OTHERS, ids=lambda each: f"{each.name} {each.lock}")
def test_every_client_is_pinned_by_hash_and_names_no_host(other: Other) -> None:
    text = lock_of(other).read_text(encoding="utf-8")
    assert version_of(other)
    packages = text.count('"integrity"') if other.language == "node" else text.count("--hash=")
    assert packages > 0
    assert "--index-url" not in text
    assert '"resolved"' not in text


def test_the_page_has_a_row_for_every_client_and_transport() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (stdio|HTTP|not installed) \|", PAGE.read_text(),
                      re.MULTILINE)  # fmt: skip
    shown = {"stdio": "stdio", "http": "HTTP"}
    for other in OTHERS:
        for transport in other.transports:
            row = (other.name, version_of(other))
            assert {(*row, shown[transport]), (*row, "not installed")} & set(rows), row
    assert sum(over == "not installed" for _, _, over in rows) <= 5


def test_the_page_says_what_was_counted_and_what_failed() -> None:
    other, absent = OTHERS[0], OTHERS[1]
    twice = Outcome(other, "http", {"list": 0, "charge": 1, "again": 2}, failed="it `broke`\nhere")
    written = page([twice], [NotInstalled(absent, "pip install x", "no such version")])
    assert f"| {other.name} | {version_of(other)} | HTTP | 0 | 1 | 2 | failed |" in written
    assert "it 'broke' here" in written
    assert "`pip install x` ended with `no such version`" in written
    assert not twice.charged_once
