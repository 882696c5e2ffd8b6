"""A new store asks for a master key of full length; one that was begun with less still opens."""

from __future__ import annotations

import pytest

from kb_mcp.environment import SettingsError
from kb_mcp.wiring import stores as wiring
from tests.proxy.stores.conftest import Open

SHORT, FULL = "k" * 31, "k" * 32


def test_a_new_store_refuses_a_short_key_and_takes_a_full_one(open_one: Open) -> None:
    with pytest.raises(SettingsError, match="KEYBRAKE_MASTER_KEY is too short for a new store"):
        open_one(KEYBRAKE_MASTER_KEY=SHORT)
    assert open_one(KEYBRAKE_MASTER_KEY=FULL).settings.mode == "sandbox"


def test_a_store_that_was_begun_with_a_short_key_still_opens(
    open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(wiring, "MASTER_KEY_CHARACTERS_NEW", 16)
        open_one(KEYBRAKE_MASTER_KEY=SHORT)
    assert open_one(KEYBRAKE_MASTER_KEY=SHORT).settings.mode == "sandbox"
