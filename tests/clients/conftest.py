"""One sandbox and one proxy for every file of clients, and what must be installed for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.installs import InstallError, npm_folder, python_of
from tests.clients.others.catalogue import OTHERS
from tests.clients.others.environments import installed, python_in
from tests.proxy_processes import ProxyProcesses, cluster


@dataclass(frozen=True)
class Served:
    """Running processes, and a key for each of the tools."""

    cluster: ProxyProcesses
    url: str
    billing: str
    audit: str
    both: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with cluster(tmp_path_factory.mktemp("town")) as place:
        proxy = place.start_proxy()
        audit = place.issue("--role", "audit")
        both = place.issue("--role", "billing-with-status")
        yield Served(place, proxy.url, place.issue(), audit, both)


@pytest.fixture(scope="session")
def npm() -> str:
    """Return the folder that holds `node_modules`."""
    return str(or_skip(npm_folder))


@pytest.fixture(scope="session")
def strands() -> str:
    return str(or_skip(lambda: python_of("strands")))


@pytest.fixture(scope="session")
def langchain() -> str:
    return str(or_skip(lambda: python_of("langchain")))


@pytest.fixture(scope="session")
def openai() -> str:
    (other,) = [each for each in OTHERS if each.name == "OpenAI Agents, strict"]
    return python_in(Path(str(or_skip(lambda: installed(other)))))


def or_skip(install: Callable[[], object]) -> object:
    """Install, or skip with the installer's reason; in CI that is an error."""
    try:
        return install()
    except InstallError as error:
        if os.environ.get("CI"):  # noqa: TID251 - CI must not skip, whatever it lacks
            raise
        pytest.skip(f"not installed: {error}")
