"""One fort for each file of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.fort import Fort, standing_fort


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    folder: Path = tmp_path_factory.mktemp("fort")
    with standing_fort(folder) as standing:
        yield standing
