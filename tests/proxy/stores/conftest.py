"""Both stores, opened as processes open them, on real files and a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kb_mcp.in_process import start_loop
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import Store, open_store
from tests.postgres import database, server

__all__ = ["database", "server"]

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Open = Callable[..., Store]


@pytest.fixture
def run() -> Iterator[Run]:
    """Run coroutines on one loop, on a thread of its own."""
    loop, stop = start_loop()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    stop()


@pytest.fixture(params=["sqlite", "postgres"])
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return the settings of a process on a new store of either kind."""
    if request.param == "sqlite":
        return {"KEYBRAKE_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db"}
    return dict(request.getfixturevalue("database").environ)


@pytest.fixture
def open_one(environ: dict[str, str], run: Run) -> Iterator[Open]:
    """Open the store, as often as a test likes: each is like a process of its own."""
    opened: list[Store] = []

    def open_again(**extra: str) -> Store:
        opened.append(open_store(load_settings(environ | extra)))
        return opened[-1]

    yield open_again
    for store in opened:
        run(store.close())
