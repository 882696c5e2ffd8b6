"""One server for these tests; every test has a store, a sandbox and processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import Database, database, server
from tests.proxy_processes import ProxyProcesses, Running, cluster

__all__ = ["database", "server"]

StartHost = Callable[..., Running]


@pytest.fixture
def here(tmp_path: Path, database: Database) -> Iterator[ProxyProcesses]:
    """Build a sandbox and the way to start hosts on the shared store."""
    environ = {"KEYBRAKE_UPSTREAM_TIMEOUT": "5", "KEYBRAKE_RECOVERY_INTERVAL": "1"}
    with cluster(tmp_path, **database.environ, **environ) as built:
        yield built


@pytest.fixture
def start_host(here: ProxyProcesses, tmp_path: Path) -> StartHost:
    """Start `up` as on a host of its own: with a name and files that no other host sees."""

    def start(name: str, **environ: str) -> Running:
        before = dict(here.extra)
        here.extra |= {
            "XDG_DATA_HOME": str(tmp_path / name), "KEYBRAKE_NODE_ID": name, **environ,
        }  # fmt: skip
        try:
            return here.start_proxy()
        finally:
            here.extra.clear()
            here.extra.update(before)

    return start
