"""Both stores, saved and put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.losses.host import Host
from tests.postgres import database, server

__all__ = ["database", "server"]


@pytest.fixture(params=["sqlite", "postgres"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    folder = tmp_path / "host"
    folder.mkdir()
    if request.param == "sqlite":
        return Host(folder)
    shared = request.getfixturevalue("database")
    # The fixture keeps the files of this host in the test's own folder.
    return Host(tmp_path, shared)
