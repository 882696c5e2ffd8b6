"""Building the ways out: to Stripe (its client, or the sandbox), and to identity providers.

Every key that is used at Stripe must reach the account that the store is for.

Floor: wiring. In sandbox mode kb-mcp follows the sandbox's clock. The file of the Stripe key is
read again once Stripe says 401, so that a rotated key needs no restart: a 401 proves that Stripe
did not begin, and the same request may go out again under the same idempotency key.
A provider's document is fetched within a bound, as it is: no redirects, no compression, and nothing
of the environment but the certificates that it trusts.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import sqlite3
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.proxy.access.issuers import DOCUMENT_BYTES_MAX, FETCH_WITHIN_S, FetchError, Issuers
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.proxy.stripe.client import EgressError, InProcessUpstream, StripeUpstream
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import parse_object
from kb_mcp.proxy.stripe.messages import Answered, Upstream, UpstreamAnswer, UpstreamRequest
from kb_mcp.proxy.stripe.reader import Missing, StripeReads, Unread
from kb_mcp.serving.machine import boottime_ms, host_ms, random_name
from kb_mcp.settings import SANDBOX_KEY, STRIPE_API_BASE, Settings, check_upstream
from kb_mcp.wiring.stores import Store, StoreError, Turned, store_path

_CLOCK_WITHIN_MS = 2_000
# A key that Stripe refuses is asked for on every request: its file is not read for each of them.
REREAD_EVERY_MS = 2_000
KEY_FACT = "upstream_key:"
# How many of the newest objects are asked for, where one cannot be read.
OBJECTS_TRIED = 5
_log = logging.getLogger("kb_mcp.wiring")


async def follow_sandbox(turned: Turned, upstream: Upstream, base_ms: Callable[[], int]) -> None:
    """Ask the sandbox how far its clock was turned from `base_ms`, before what may charge.

    Where it cannot be had, the last known offset stands. What answers at the sandbox's address may
    be no sandbox of ours: then nobody is `followed`, and its `Date` is compared as Stripe's is.
    """
    request = UpstreamRequest("GET", "/_sandbox/clock")
    answer = await upstream.send(request, deadline_ms=boottime_ms() + _CLOCK_WITHIN_MS)
    shown = parse_object(answer.body) if isinstance(answer, Answered) else None
    now = (shown or {}).get("now_ms")
    if type(now) is int:
        turned.followed, turned.offset_ms = True, now - base_ms()


def build_upstream(settings: Settings, sandbox_app: Any | None) -> Upstream:
    """Return the way to Stripe: over the network, or the sandbox in this process."""
    if settings.upstream_base is None:
        app = sandbox_app or build_sandbox(settings)
        return InProcessUpstream(app, SANDBOX_KEY, settings.upstream_timeout_ms)
    return UpstreamWithKeyFile(settings)


def _over_network(settings: Settings) -> Upstream:
    return StripeUpstream(
        base_url=settings.upstream_base or STRIPE_API_BASE,
        api_key=upstream_key(settings),
        timeout_ms=settings.upstream_timeout_ms,
        boottime_ms=boottime_ms,
        allow_http=settings.allow_http,
    )


class UpstreamWithKeyFile(Upstream):
    """A way to Stripe whose key may change in its file.

    `prove` is set once the store is open: it raises unless a way to Stripe, with the key of those
    settings, reaches the account that the store is for.
    """

    def __init__(self, settings: Settings) -> None:
        """Open the way that `settings` say. Raises: EgressError."""
        self._settings = settings
        self._current = _over_network(settings)
        self._former: list[Upstream] = []
        self._lock = asyncio.Lock()
        self._read_at = -REREAD_EVERY_MS
        self.prove: Callable[[Upstream, Settings], Awaitable[None]] | None = None

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
        if self._current is used or boottime_ms() > deadline_ms:
            return answer  # where the proof took too long, the next request has the newer key
        return await self._current.send(request, deadline_ms=deadline_ms)

    @override
    async def aclose(self) -> None:
        """Close the connections."""
        for each in (*self._former, self._current):
            await each.aclose()

    async def _renew(self) -> None:
        """Take the key that the file holds now, if it is another one of the same account."""
        now = boottime_ms()
        if self.prove is None or now < self._read_at + REREAD_EVERY_MS:
            return
        self._read_at = now
        try:
            newer = _reread(self._settings)
            if newer == self._settings:
                return
            candidate = _over_network(newer)
        except (SettingsError, EgressError) as error:
            _log.error("the Stripe key's file holds nothing that can be used: %s", error)
            return
        try:
            await self.prove(candidate, newer)
        except Exception as error:  # noqa: BLE001 whatever it is, the request itself must still end
            why = "nothing shows that it is of the account that this store is for: it is not used"
            _log.error("the Stripe key's file holds another key, and %s (%s)", why, error)
            await candidate.aclose()
            return
        # What is under way with the former key ends there.
        self._former.append(self._current)
        self._settings, self._current = newer, candidate
        _log.warning("Stripe refused our key; the one that its file holds now is used")


def _reread(settings: Settings) -> Settings:
    """Return `settings` with the key as its file has it now. Raises: SettingsError."""
    key = settings.stripe_key
    newer = replace(settings, stripe_key=None if key is None else key.reread())
    check_upstream(newer)
    if newer.upstream_mode != settings.upstream_mode:
        hint = "Put a key of the same mode there, or start anew."
        raise SettingsError("KEYBRAKE_STRIPE_KEY_FILE", "holds a key of another mode", hint)
    return newer


def build_sandbox(settings: Settings) -> Any:
    """Return the sandbox on its own file beside the ledger, so that processes share it.

    Raises: StoreError.
    """
    from kb_mcp.sandbox.app import Sandbox

    store = store_path(settings)
    file = store.with_name(f"{store.name}.sandbox")
    try:
        return Sandbox(file, clock=host_ms, new_id=random_name)
    except sqlite3.Error as error:
        raise StoreError(f"cannot use the sandbox's file {file}: {error}") from error


def upstream_key(settings: Settings) -> str:
    """Return the key that the proxy uses at Stripe; the sandbox's where none is set."""
    return SANDBOX_KEY if settings.stripe_key is None else settings.stripe_key.reveal()


@dataclass(frozen=True, slots=True)
class Account:
    """Binds `store` to the account of the key in `settings`, which `reads` use.

    Where the key may read its account, the account's id binds. Where it may not, the store keeps a
    keyed hash of each key that it was used with; another key is taken once it can read an object
    that this store made.
    """

    store: Store
    reads: StripeReads
    settings: Settings

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
            self.store.bind_account(account_id, self.settings.account_label)
        await self._remember(facts, None)

    async def prove(self, upstream: Upstream, newer: Settings) -> None:
        """Check the same of the key in `newer`, which `upstream` uses. Raises: as `bind`."""
        reads = replace(self.reads, upstream=upstream)
        await replace(self, reads=reads, settings=newer).bind()

    async def confirm(self, operator: str) -> None:
        """Take the key on an operator's word, where no object of the store can be read by it.

        Raises: BindingError, where Stripe says that this is another account.
        """
        account_id, facts = await self._account_id(), await self.store.records.facts()
        if account_id is not None and facts.get("account_id", account_id) != account_id:
            self.store.bind_account(account_id, self.settings.account_label)
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
            if isinstance(seen, Missing):
                whose = "another Stripe account" if account_id is None else f"account {account_id}"
                raise BindingError(
                    f"KEYBRAKE_STRIPE_KEY belongs to {whose}: Stripe does not know "
                    f"{operation.object_id} there, which this store made. Use another "
                    "KEYBRAKE_DATABASE_URL, one store an account"
                )
            if not isinstance(seen, Unread):
                return True
        return False

    async def _account_id(self) -> str | None:
        found = (await self.reads.body("/v1/account") or {}).get("id")
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
        named = f"upstream-key:{upstream_key(self.settings)}".encode()
        digest = hmac.new(self.store.chain_key, named, "sha256")
        return f"{KEY_FACT}{digest.hexdigest()[:32]}"


_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


def build_issuers(settings: Settings) -> Issuers | None:
    """Return the issuers of `settings`; None where vault keys alone are accepted."""
    issuers, resource = settings.oauth_issuers, settings.oauth_resource
    if not issuers or resource is None:
        return None
    return Issuers(issuers, resource, fetch_document, settings.may_reach, boottime_ms)


async def fetch_document(url: str) -> bytes:
    """Get the document at `url`. Raises: FetchError."""
    body, context = bytearray(), ssl.create_default_context() if url.startswith("https:") else False
    # A client for each document: keys are fetched once in minutes.
    client = httpx.AsyncClient(
        verify=context, trust_env=False, follow_redirects=False, timeout=FETCH_WITHIN_S
    )
    try:
        async with client, client.stream("GET", url, headers=_HEADERS) as response:
            if response.status_code != httpx.codes.OK:
                raise FetchError(f"status {response.status_code} at {response.url}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FetchError(f"a compressed answer at {response.url}")
            async for part in response.aiter_raw():
                body += part
                if len(body) > DOCUMENT_BYTES_MAX:
                    raise FetchError(f"more than {DOCUMENT_BYTES_MAX} bytes at {response.url}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{type(error).__name__} at {url}") from error
    return bytes(body)
