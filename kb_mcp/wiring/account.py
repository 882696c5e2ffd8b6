"""The account behind a store: every key that is used must reach the account that the store is for.

Floor: wiring. Where the key may read its account, the account's id binds. Where it may not, the
store keeps a keyed hash of each key that it was used with; another key is taken once it can read an
object that this store made. The key's file is read again once Stripe says 401, so that a rotated
key needs no restart: a 401 proves that Stripe did not begin, and the same request may go out again
under the same idempotency key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.proxy.stripe.client import EgressError
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.messages import Answered, Upstream, UpstreamAnswer, UpstreamRequest
from kb_mcp.proxy.stripe.reader import Found, Missing, StripeReads
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings, check_upstream
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

        Raises: BindingError, LedgerUnavailableError.
        """
        account_id = await self._account_id()
        facts = await self.store.records.facts()
        if not self._is_known(facts, account_id):
            await self._prove(account_id)
        if account_id is not None:
            self.store.bind_account(account_id, self.label)
        await self._remember(facts, None)

    async def confirm(self, operator: str) -> None:
        """Take the key on an operator's word, where no object of the store can be read by it.

        Raises: BindingError, where Stripe says that this is another account.
        """
        account_id = await self._account_id()
        facts = await self.store.records.facts()
        bound = facts.get("account_id")
        if bound is not None and account_id is not None and bound != account_id:
            self.store.bind_account(account_id, self.label)
        await self._read_own(account_id)
        await self._remember(facts, operator)

    def _is_known(self, facts: Mapping[str, str], account_id: str | None) -> bool:
        """Say whether nothing needs to be proven: a known key or account, or the first of all."""
        bound = facts.get("account_id")
        if facts.get(self._fact) or (bound is not None and account_id is not None):
            # Two ids that differ are refused when the account is bound.
            return True
        return bound is None and not any(name.startswith(KEY_FACT) for name in facts)

    async def _prove(self, account_id: str | None) -> None:
        if not await self._read_own(account_id):
            raise BindingError(
                "KEYBRAKE_STRIPE_KEY is another key than this store was used with, and nothing "
                "shows that it is of the same Stripe account: if it is, run `kb-mcp settings "
                "confirm-account`"
            )

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


# A key that Stripe refuses is asked for on every request: its file is not read for each of them.
REREAD_EVERY_MS = 2_000
Open = Callable[[Settings], Upstream]
# Says whether a key reaches the account that the store is for: the way to Stripe, and the key.
Proves = Callable[[Upstream, str], Awaitable[bool]]

_log = logging.getLogger("kb_mcp.wiring")


class UpstreamWithKeyFile(Upstream):
    """A way to Stripe whose key may change in its file. `proves` is set once the store is open."""

    def __init__(self, settings: Settings, open_upstream: Open, clock: Callable[[], int]) -> None:
        """Open the way that `settings` say; `clock` is the boot clock, in ms."""
        self._settings = settings
        self._open = open_upstream
        self._clock = clock
        self._current = open_upstream(settings)
        self._former: list[Upstream] = []
        self._lock = asyncio.Lock()
        self._read_at: int | None = None
        self.proves: Proves | None = None

    @override
    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Send; and once more with a newer key, where Stripe does not know ours any more."""
        used = self._current
        answer = await used.send(request, deadline_ms=deadline_ms)
        if not isinstance(answer, Answered) or answer.status != 401:
            return answer
        async with self._lock:
            if self._current is used:
                await self._renew()
        return answer if self._current is used else await self._again(request, answer, deadline_ms)

    @override
    async def aclose(self) -> None:
        """Close the connections."""
        for each in (*self._former, self._current):
            await each.aclose()

    async def _again(
        self, request: UpstreamRequest, answer: UpstreamAnswer, deadline_ms: int
    ) -> UpstreamAnswer:
        if self._clock() > deadline_ms:
            return answer  # the proof took too long: the next request has the newer key
        return await self._current.send(request, deadline_ms=deadline_ms)

    async def _is_proven(self, candidate: Upstream, key: str) -> bool:
        try:
            return self.proves is not None and await self.proves(candidate, key)
        except Exception:  # noqa: BLE001 the store is in trouble: the request itself must still end
            _log.exception("it cannot be told whose the key in the Stripe key's file is")
            return False

    async def _renew(self) -> None:
        """Take the key that the file holds now, if it is another one of the same account."""
        now = self._clock()
        if self.proves is None or (
            self._read_at is not None and now < self._read_at + REREAD_EVERY_MS
        ):
            return
        self._read_at = now
        newer = _reread(self._settings)
        if newer is None:
            return
        try:
            candidate = self._open(newer)
        except EgressError as error:
            _log.error("the Stripe key's file holds a key that may not be used: %s", error)
            return
        if newer.stripe_key is None or not await self._is_proven(
            candidate, newer.stripe_key.reveal()
        ):
            _log.error(
                "the Stripe key's file holds another key, and nothing shows that it is of the "
                "account that this store is for: it is not used"
            )
            await candidate.aclose()
            return
        # What is under way with the former key ends there.
        self._former.append(self._current)
        self._settings, self._current = newer, candidate
        _log.warning("Stripe refused our key; the one that its file holds now is used")


async def is_of_account(store: Store, label: str, upstream: Upstream, key: str) -> bool:
    """Say whether `key`, which `upstream` uses, reaches the account that `store` is for.

    Raises: LedgerUnavailableError.
    """
    reads = StripeReads(upstream, store.clock, boottime_ms)
    try:
        await Account(store, reads, key, label).bind()
    except BindingError:
        return False
    return True


def _reread(settings: Settings) -> Settings | None:
    """Return `settings` with the key as its file has it now; None where there is no other."""
    key = settings.stripe_key
    try:
        read = None if key is None else key.reread()
        if read is None or read == key:
            return None
        newer = replace(settings, stripe_key=read)
        check_upstream(newer)
    except SettingsError as error:
        _log.error("the Stripe key's file cannot be used: %s", error)
        return None
    if newer.upstream_mode != settings.upstream_mode:
        _log.error("the Stripe key's file holds a key of another mode: it is not used")
        return None
    return newer
