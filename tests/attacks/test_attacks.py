"""Every attack of the tables, at the running `up`."""

from __future__ import annotations

import pytest

from tests.attacks.attack import Attack, prove
from tests.attacks.attacked_proxy import AttackedProxy
from tests.attacks.catalogue import ATTACKS


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_what_was_not_granted_is_refused_and_what_was_is_sent(
    attacked: AttackedProxy, attack: Attack
) -> None:
    prove(attacked, attack)
