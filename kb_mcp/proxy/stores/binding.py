"""What a store is bound to, and the registry of its nodes: the same for every engine.

Floor: inside the stores. Pure: facts arrive as text and leave as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import assert_never

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import NEW_STORE, StoreSettings
from kb_mcp.proxy.store_admin import Binds


class SchemaError(Exception):
    """The store has a schema that this version cannot serve; the message says what to do."""


class BindingError(Exception):
    """The store belongs to another account, mode or configuration; the message names both."""


def facts_of(settings: StoreSettings, binds: Binds) -> dict[str, str]:
    """Return the facts that bind a new store to `settings`."""
    account = {"account": settings.account, "mode": settings.mode}
    limits = {
        "ceilings": json.dumps(dict(settings.ceilings)),
        "refund_ceilings": json.dumps(dict(settings.refund_ceilings)),
        "upstream_timeout_ms": str(settings.upstream_timeout_ms),
        "recovery_grace_ms": str(settings.recovery_grace_ms),
    }
    match binds:
        case Binds.NOTHING:
            return {}
        case Binds.ACCOUNT:
            return account
        case Binds.LIMITS:
            return account | limits
        case _:
            assert_never(binds)


class LiveSettings:
    """The settings of a store, as each transaction reads them from its rows.

    A ceiling holds from the commit that wrote it, and so does a longer grace; a shorter one begins
    with the next start, since a send under way may rest on the longer.
    """

    def __init__(self, bound: StoreSettings) -> None:
        """Begin with what the store was bound to when it was opened."""
        self.now = self._bound = bound
        self._read: tuple[str | None, ...] = ()

    def read(self, facts: Mapping[str, str | None]) -> StoreSettings:
        """Return the settings that `facts` tell, and keep them in `now`."""
        told = tuple(map(facts.get, ("ceilings", "refund_ceilings", "recovery_grace_ms")))
        if told != self._read:
            bound, (ceilings, refunds, grace) = self._bound, told
            self.now = replace(
                bound,
                ceilings=bound.ceilings if ceilings is None else json.loads(ceilings),
                refund_ceilings=bound.refund_ceilings if refunds is None else json.loads(refunds),
                recovery_grace_ms=max(bound.recovery_grace_ms, int(grace or 0)),
            )
            self._read = told
        return self.now


def missing_facts(
    stored: Mapping[str, str], bound: StoreSettings, binds: Binds, marks: Mapping[str, str]
) -> dict[str, str]:
    """Return the facts that a store of `bound` lacks: all of a new one, else what is kept since.

    Raises: BindingError, where it has another of `marks`: of two first processes one came first.
    """
    if any(stored.get(name, value) != value for name, value in marks.items()):
        raise BindingError("another process began this store just now, with another master key")
    kept = {"store_id": bound.store_id, **marks, **facts_of(bound, binds)}
    if not stored:
        # Until its first whole walk: it may stand in for one that was lost.
        kept[NEW_STORE] = "1"
    return {name: value for name, value in kept.items() if name not in stored}


def bound_by(
    facts: Mapping[str, str], wanted: StoreSettings, explicit: Mapping[str, object]
) -> StoreSettings:
    """Return what a store with `facts` is bound to; what they do not say yet is as `wanted`.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. Raises: BindingError.
    """
    told = {**facts_of(wanted, Binds.LIMITS), **facts}
    bound = replace(
        wanted,
        account=told["account"],
        mode=told["mode"],
        ceilings=json.loads(told["ceilings"]),
        refund_ceilings=json.loads(told["refund_ceilings"]),
        upstream_timeout_ms=int(told["upstream_timeout_ms"]),
        recovery_grace_ms=int(told["recovery_grace_ms"]),
        store_id=facts.get("store_id", wanted.store_id),
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
