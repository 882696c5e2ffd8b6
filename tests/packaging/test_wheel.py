"""The wheel, installed as a user installs it, away from the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_installed_package_is_the_wheels_and_not_the_checkouts(
    installed: Path, tmp_path: Path
) -> None:
    where = run(installed / "python", "-c", "import kb_mcp; print(kb_mcp.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_demo_runs_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    assert "charges" in run(installed / "kb-mcp", "demo", cwd=tmp_path).lower()
