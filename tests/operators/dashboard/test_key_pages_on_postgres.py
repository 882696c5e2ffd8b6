"""The pages of a store with many keys, on PostgreSQL: the same tests, run again."""

from __future__ import annotations

import pytest

from tests.in_process_proxy import InProcessProxy
from tests.operators.dashboard.test_key_pages import *  # noqa: F403 every one of them
from tests.postgres import Database, database, server  # noqa: F401 fixtures are found by name

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811 the fixture above
    monkeypatch.setattr(InProcessProxy, "store", database.environ)
