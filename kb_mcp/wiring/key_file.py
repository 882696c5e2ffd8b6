"""The Stripe key's file, read again once Stripe says 401: a rotated key needs no restart.

Floor: wiring. A 401 proves that Stripe did not begin, so that the same request may go out again
under the same idempotency key. Another key is taken only once it is shown to be of the store's own
account.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.proxy.stripe.client import EgressError
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamAnswer, UpstreamRequest
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings, check_upstream
from kb_mcp.wiring.account import Account
from kb_mcp.wiring.store import Store

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
