"""All attacks that are one request, family by family."""

from __future__ import annotations

from tests.attacks.attack import Attack
from tests.attacks.families import (
    bodies,
    framing,
    headers,
    hosts,
    keys,
    parameters,
    paths,
    privilege,
    rules,
    values,
)

ATTACKS: tuple[Attack, ...] = (
    *paths.ATTACKS,
    *bodies.ATTACKS,
    *headers.ATTACKS,
    *parameters.ATTACKS,
    *values.ATTACKS,
    *keys.ATTACKS,
    *privilege.ATTACKS,
    *rules.ATTACKS,
    *framing.ATTACKS,
    *hosts.ATTACKS,
)
