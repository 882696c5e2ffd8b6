"""Node's packages, from the same install as the other clients'."""

from __future__ import annotations

import pytest

from tests.clients.conftest import or_skip
from tests.clients.installs import npm_folder


@pytest.fixture(scope="session")
def npm() -> str:
    """Return the folder that holds `node_modules`."""
    return str(or_skip(npm_folder))
