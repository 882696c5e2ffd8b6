"""One fort for each file of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.attacked_proxy import AttackedProxy, standing_fort


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedProxy]:
    folder: Path = tmp_path_factory.mktemp("fort")
    with standing_fort(folder) as snapshot:
        yield snapshot
