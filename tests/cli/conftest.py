"""A machine of its own for every test of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
