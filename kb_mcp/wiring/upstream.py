"""Building the ways out: to Stripe (its client, or the sandbox), and to identity providers.

Floor: wiring. In sandbox mode kb-mcp follows the sandbox's clock. A provider's document is fetched
within a bound, as it is: no redirects, no compression, and nothing of the environment but the
certificates that it trusts.
"""

from __future__ import annotations

import json
import sqlite3
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from kb_mcp.proxy.access.issuers import DOCUMENT_BYTES_MAX, FETCH_WITHIN_S, FetchError, Issuers
from kb_mcp.proxy.stripe.client import InProcessUpstream, StripeUpstream
from kb_mcp.proxy.stripe.messages import Answered, Upstream, UpstreamRequest
from kb_mcp.serving.machine import boottime_ms, host_ms, random_name
from kb_mcp.settings import SANDBOX_KEY, STRIPE_API_BASE, Settings
from kb_mcp.wiring.account import UpstreamWithKeyFile
from kb_mcp.wiring.stores import store_path
from kb_mcp.wiring.stores.store import StoreError, Turned

_CLOCK_WITHIN_MS = 2_000


class FollowedClock(Turned):
    """How far the sandbox's clock was turned, asked for before each request that may charge.

    What stands at the sandbox's address may be no sandbox of ours: then nobody is `followed`, and
    its `Date` is compared as Stripe's is.
    """

    def __init__(self, upstream: Upstream, host_ms: Callable[[], int]) -> None:
        """Follow the clock behind `upstream`; `host_ms` is this host's."""
        self._upstream = upstream
        self._host_ms = host_ms
        super().__init__()

    def measure_from(self, base_ms: Callable[[], int]) -> None:
        """Tell the offset from another clock than this host's: the store's own."""
        self._host_ms = base_ms

    async def follow(self, boottime_ms: Callable[[], int]) -> None:
        """Ask for the sandbox's time. Where it cannot be had, the last known offset stands."""
        request = UpstreamRequest("GET", "/_sandbox/clock")
        answer = await self._upstream.send(request, deadline_ms=boottime_ms() + _CLOCK_WITHIN_MS)
        exact = _now_of(answer.body) if isinstance(answer, Answered) else None
        if exact is not None:
            self.followed = True
            self.offset_ms = exact - self._host_ms()


def _now_of(body: bytes) -> int | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    now = parsed.get("now_ms") if isinstance(parsed, dict) else None
    return now if type(now) is int else None


def build_upstream(settings: Settings, sandbox_app: Any | None) -> Upstream:
    """Return the way to Stripe: over the network, or the sandbox in this process."""
    if settings.upstream_base is None:
        app = sandbox_app or build_sandbox(settings)
        return InProcessUpstream(app, SANDBOX_KEY, settings.upstream_timeout_ms)
    return UpstreamWithKeyFile(settings, _over_network, boottime_ms)


def _over_network(settings: Settings) -> Upstream:
    return StripeUpstream(
        base_url=settings.upstream_base or STRIPE_API_BASE,
        api_key=upstream_key(settings),
        timeout_ms=settings.upstream_timeout_ms,
        boottime_ms=boottime_ms,
        allow_http=settings.allow_http,
    )


def build_sandbox(settings: Settings) -> Any:
    """Return the sandbox on its own file beside the ledger, so that processes share it.

    Raises: StoreError.
    """
    from kb_mcp.sandbox.app import create_sandbox

    file = sandbox_file(settings)
    try:
        return create_sandbox(file, clock=host_ms, new_id=random_name)
    except sqlite3.Error as error:
        raise StoreError(f"cannot use the sandbox's file {file}: {error}") from error


def sandbox_file(settings: Settings) -> Path:
    """Return the file of the sandbox that belongs to the store."""
    return store_path(settings).with_name(f"{store_path(settings).name}.sandbox")


def upstream_key(settings: Settings) -> str:
    """Return the key that the proxy uses at Stripe; the sandbox's where none is set."""
    return SANDBOX_KEY if settings.stripe_key is None else settings.stripe_key.reveal()


_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


def build_issuers(settings: Settings) -> Issuers | None:
    """Return the issuers of `settings`; None where vault keys alone are accepted."""
    if not settings.oauth_issuers or settings.oauth_resource is None:
        return None
    return Issuers(
        settings.oauth_issuers,
        settings.oauth_resource,
        fetch_document,
        settings.may_reach,
        boottime_ms,
    )


async def fetch_document(url: str) -> bytes:
    """Get the document at `url`. Raises: FetchError."""
    # A client for each document: keys are fetched once in minutes.
    try:
        async with (
            httpx.AsyncClient(
                verify=ssl.create_default_context() if url.startswith("https:") else False,
                trust_env=False,
                follow_redirects=False,
                timeout=FETCH_WITHIN_S,
            ) as client,
            client.stream("GET", url, headers=_HEADERS) as response,
        ):
            return await _read(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{type(error).__name__} at {url}") from error


async def _read(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise FetchError(f"status {response.status_code} at {response.url}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"a compressed answer at {response.url}")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > DOCUMENT_BYTES_MAX:
            raise FetchError(f"more than {DOCUMENT_BYTES_MAX} bytes at {response.url}")
    return bytes(body)
