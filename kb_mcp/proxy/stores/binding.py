"""What a store is bound to, and the registry of its nodes: the same for every engine.

Floor: inside the stores. Pure: facts arrive as text and leave as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import NEW_STORE, StoreSettings


class SchemaError(Exception):
    """The store has a schema that this version cannot serve; the message says what to do."""


class BindingError(Exception):
    """The store belongs to another account, mode or configuration; the message names both."""


def facts_of(settings: StoreSettings) -> dict[str, str]:
    """Return the facts that bind a new store to `settings`."""
    return {
        "account": settings.account,
        "mode": settings.mode,
        "ceilings": json.dumps(dict(settings.ceilings)),
        "upstream_timeout_ms": str(settings.upstream_timeout_ms),
        "recovery_grace_ms": str(settings.recovery_grace_ms),
    }


def missing_facts(
    stored: Mapping[str, str], wanted: StoreSettings, marks: Mapping[str, str]
) -> dict[str, str]:
    """Return the facts that a store lacks: all of a new one, else what later versions keep.

    Raises: BindingError, where it has another of `marks`: of two first processes one came first.
    """
    if any(stored.get(name, value) != value for name, value in marks.items()):
        raise BindingError("another process began this store just now, with another master key")
    kept = {"store_id": wanted.store_id, **marks}
    if not stored:
        # Until its first whole walk: it may stand in for one that was lost.
        kept[NEW_STORE] = "1"
    if "mode" not in stored:
        kept |= facts_of(wanted)
    return {name: value for name, value in kept.items() if name not in stored}


def bound_by(
    facts: Mapping[str, str], wanted: StoreSettings, explicit: Mapping[str, object]
) -> StoreSettings:
    """Return what a store with `facts` is bound to.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. Raises: BindingError.
    """
    bound = replace(
        wanted,
        account=facts["account"],
        mode=facts["mode"],
        ceilings=json.loads(facts["ceilings"]),
        upstream_timeout_ms=int(facts["upstream_timeout_ms"]),
        recovery_grace_ms=int(facts["recovery_grace_ms"]),
        store_id=facts["store_id"],
    )
    if (bound.account, bound.mode) != (wanted.account, wanted.mode):
        raise BindingError(
            f"the store belongs to account {bound.account!r} in {bound.mode} mode, this process "
            f"is set up for {wanted.account!r} in {wanted.mode} mode: use another "
            "KEYBRAKE_DATABASE_URL, one store an account and mode"
        )
    for name, value in explicit.items():
        held = getattr(bound, name)
        if held != value:
            raise BindingError(
                f"the store says {name} = {held}, this process {value}: set it for all processes "
                f"with `kb-mcp settings set`, and take it out of this one's environment"
            )
    return bound


def check_account(bound: str, account_id: str) -> None:
    """Compare the Stripe account of a store with the upstream key's. Raises: BindingError."""
    if bound != account_id:
        raise BindingError(
            f"the store belongs to Stripe account {bound}, the key in KEYBRAKE_STRIPE_KEY to "
            f"{account_id}: use another KEYBRAKE_DATABASE_URL, one store an account"
        )
