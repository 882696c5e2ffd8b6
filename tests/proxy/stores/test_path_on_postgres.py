"""Every test of the path of a charge, with the ledger in PostgreSQL."""

from __future__ import annotations

import pytest

from tests.in_process_proxy import InProcessProxy
from tests.postgres import Database
from tests.proxy.test_path_of_a_charge import *  # noqa: F403 the same tests, collected once more


@pytest.fixture(autouse=True)
def on_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessProxy, "store", database.environ)
