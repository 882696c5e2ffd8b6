"""A sandbox of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox.driver import Driver, driving, new_sandbox


@pytest.fixture
def sandbox() -> Iterator[Driver]:
    with driving(new_sandbox()) as driver:
        yield driver
