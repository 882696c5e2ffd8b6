"""The account behind a store: every key that is used must reach the account that the store is for.

Floor: wiring. Where the key may read its account, the account's id binds. Where it may not, the
store keeps a keyed hash of each key that it was used with; another key is taken once it can read an
object that this store made.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.messages import Upstream
from kb_mcp.proxy.stripe.reader import Found, Missing, StripeReads
from kb_mcp.wiring.stores.store import Store

KEY_FACT = "upstream_key:"
# How many of the newest objects are asked for, where one cannot be read.
OBJECTS_TRIED = 5


@dataclass(frozen=True, slots=True)
class Account:
    """Binds `store` to the account of `key`, over `reads`, which use that key."""

    store: Store
    reads: StripeReads
    key: str
    label: str

    async def bind(self) -> None:
        """Check that the key belongs to the store's account, and remember it.

        Nothing needs to be proven of a key or an account that is known, or is the first of all.
        Raises: BindingError, LedgerUnavailableError.
        """
        account_id, facts = await self._account_id(), await self.store.records.facts()
        bound = facts.get("account_id")
        # Two ids that differ are refused when the account is bound.
        known = facts.get(self._fact) or (bound is not None and account_id is not None)
        first = bound is None and not any(name.startswith(KEY_FACT) for name in facts)
        if not (known or first or await self._read_own(account_id)):
            raise BindingError(
                "KEYBRAKE_STRIPE_KEY is another key than this store was used with, and nothing "
                "shows that it is of the same Stripe account: if it is, run `kb-mcp settings "
                "confirm-account`"
            )
        if account_id is not None:
            self.store.bind_account(account_id, self.label)
        await self._remember(facts, None)

    async def prove(self, upstream: Upstream, key: str) -> None:
        """Check the same of another key, which `upstream` uses. Raises: as `bind`."""
        await replace(self, reads=replace(self.reads, upstream=upstream), key=key).bind()

    async def confirm(self, operator: str) -> None:
        """Take the key on an operator's word, where no object of the store can be read by it.

        Raises: BindingError, where Stripe says that this is another account.
        """
        account_id, facts = await self._account_id(), await self.store.records.facts()
        if account_id is not None and facts.get("account_id", account_id) != account_id:
            self.store.bind_account(account_id, self.label)
        await self._read_own(account_id)
        await self._remember(facts, operator)

    async def _read_own(self, account_id: str | None) -> bool:
        """Say whether the key reads an object that this store made. Raises: BindingError."""
        newest = await self.store.records.operations(state="succeeded", limit=OBJECTS_TRIED)
        for operation, _ in newest:
            template = ENDPOINTS[operation.route].template if operation.route in ENDPOINTS else "*"
            if operation.object_id is None or "*" in template:
                continue
            seen = await self.reads.get(f"{template}/{operation.object_id}")
            if isinstance(seen, Found):
                return True
            if isinstance(seen, Missing):
                whose = "another Stripe account" if account_id is None else f"account {account_id}"
                raise BindingError(
                    f"KEYBRAKE_STRIPE_KEY belongs to {whose}: Stripe does not know "
                    f"{operation.object_id} there, which this store made. Use another "
                    "KEYBRAKE_DATABASE_URL, one store an account"
                )
        return False

    async def _account_id(self) -> str | None:
        seen = await self.reads.get("/v1/account")
        found = seen.body.get("id") if isinstance(seen, Found) else None
        return found if isinstance(found, str) and found.startswith("acct_") else None

    async def _remember(self, facts: Mapping[str, str], operator: str | None) -> None:
        if facts.get(self._fact):
            return
        row = AuditDraft(
            kind="admin",
            decision="confirm_account" if operator else "upstream_key_taken",
            agent_id=operator,
            note=json.dumps({"key": self._fact.removeprefix(KEY_FACT)[:8]}),
        )
        changes = Changes(facts=((self._fact, "1"),), audit=(row,))
        await self.store.ledger.transact(lambda _: Refs(), lambda _: (None, changes))

    @property
    def _fact(self) -> str:
        """The name of the fact that stands for the key; it gives the key away to nobody."""
        digest = hmac.new(self.store.chain_key, f"upstream-key:{self.key}".encode(), "sha256")
        return f"{KEY_FACT}{digest.hexdigest()[:32]}"
