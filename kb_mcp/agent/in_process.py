"""The line into a proxy of this process, asked on the event loop that both run on.

Floor: wing A, above line. It sends what the Stripe SDK would send, form and headers, to the same
ASGI application that a socket would reach, and spares a tool call the SDK, an HTTP client and the
threads that both would block.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from typing_extensions import override

from kb_mcp.agent.line import MAX_NETWORK_RETRIES, Headers, Line, Lost, Resource
from kb_mcp.agent.outcomes import Reply, as_map
from kb_mcp.in_process import AsgiApp, Exchange

if TYPE_CHECKING:
    from kb_mcp.agent.catalogue import ChargeApi

ANSWER_WITHIN_S: Final = 60
RETRY_AFTER_S: Final = 0.5
_FORM: Final = (b"content-type", b"application/x-www-form-urlencoded")
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.\-~]*")  # what quote_plus leaves as it is
_quoted = lru_cache(maxsize=256)(quote_plus)  # for names: they are the same in every call
_AGAIN: Final = {"true": True, "false": False}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InProcessLine(Line):
    """Requests to `app`. `stripe_version` is what the Stripe SDK would ask for.

    `extensions` go with every request beside its headers, where no client can put anything.
    `livemode` is the mode of that application's keys, where it is known.
    """

    on_loop = True
    app: AsgiApp
    stripe_version: str
    extensions: Mapping[str, object] = field(default_factory=dict)
    livemode: bool | None = None

    @override
    async def create(
        self, token: str, api: ChargeApi, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        return await self._post(token, f"/stripe/v1/{api}", params, key, headers)

    @override
    async def refund(
        self, token: str, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        return await self._post(token, "/stripe/v1/refunds", params, key, headers)

    @override
    async def retrieve(
        self, token: str, resource: Resource, object_id: str, headers: Headers
    ) -> Reply | Lost:
        path = f"/stripe/v1/{resource}/{quote(object_id, safe='')}"
        return await self._stripe(token, "GET", path, {}, headers)

    @override
    async def payment_methods(self, token: str, customer_id: str, headers: Headers) -> Reply | Lost:
        path = f"/stripe/v1/customers/{quote(customer_id, safe='')}/payment_methods"
        return await self._stripe(token, "GET", path, {}, headers, query={"limit": "2"})

    @override
    async def operations(
        self, token: str, wanted: Mapping[str, str], headers: Headers
    ) -> Reply | Lost:
        return await self._ask(token, "GET", "/keybrake/v1/operations", headers, query=wanted)

    @override
    async def describe_key(self, token: str, headers: Headers) -> Reply | Lost:
        return await self._ask(token, "GET", "/keybrake/v1/key", headers)

    @override
    def close(self) -> None:
        """Close nothing: the application is whoever's serves it."""

    async def _post(
        self, token: str, path: str, params: Mapping[str, Any], key: str, headers: Headers
    ) -> Reply | Lost:
        return await self._stripe(token, "POST", path, params, {**headers, "Idempotency-Key": key})

    async def _stripe(
        self,
        token: str,
        method: str,
        path: str,
        params: Mapping[str, Any],
        headers: Headers,
        *,
        query: Mapping[str, str] | None = None,
    ) -> Reply | Lost:
        """Ask as the Stripe SDK asks, and again where it would."""
        body = _form(params)
        sent = {**headers, "Stripe-Version": self.stripe_version}
        answer = await self._ask(token, method, path, sent, body=body, query=query)
        for retry in range(MAX_NETWORK_RETRIES):
            if not _again(answer):
                break
            await asyncio.sleep(RETRY_AFTER_S * 2**retry)
            answer = await self._ask(token, method, path, sent, body=body, query=query)
        return answer

    async def _ask(
        self,
        token: str,
        method: str,
        path: str,
        headers: Headers,
        *,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
    ) -> Reply | Lost:
        target = f"{path}?".encode("ascii") + _form(query or {})
        exchange = Exchange(
            method, target, _raw_headers(token, headers, body), body, extensions=self.extensions
        )
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await exchange.run(self.app)
            document = as_map(json.loads(exchange.body.decode()))
        except Exception as error:  # noqa: BLE001 - it may have acted, whatever broke
            _log.error("The proxy in this process gave no answer: %s", type(error).__name__)
            return Lost(self.is_live(token))
        failed = not 200 <= exchange.status < 300
        if failed and not as_map(document.get("error")):
            return Lost(self.is_live(token))  # an answer, but none of the proxy's or Stripe's
        raw = ((name.lower(), text) for name, text in exchange.headers)
        return Reply(
            status=exchange.status,
            fields=as_map(document.get("error")) if failed else document,
            headers={name.decode("latin-1"): text.decode("latin-1") for name, text in raw},
            is_error=failed,
            livemode=self.is_live(token),
        )


def _raw_headers(token: str, headers: Headers, body: bytes) -> list[tuple[bytes, bytes]]:
    named = {"Authorization": f"Bearer {token}", **headers}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()]
    return [*raw, _FORM, (b"content-length", str(len(body)).encode())] if body else raw


def _form(params: Mapping[str, Any]) -> bytes:
    return "&".join(
        f"{_quoted(name)}={value if _UNQUOTED.fullmatch(value) else quote_plus(value)}"
        for name, value in _pairs(params)
    ).encode("ascii")


def _pairs(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield parameters as Stripe's form has them: `metadata[name]`, true and false."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}[{inner}]", text) for inner, text in _pairs(value))
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


def _again(answer: Reply | Lost) -> bool:
    """Say whether the Stripe SDK would ask again: its `_should_retry`, for answers."""
    if isinstance(answer, Lost):
        return False
    told = _AGAIN.get(answer.headers.get("stripe-should-retry", ""))
    return answer.status == 409 or answer.status >= 500 if told is None else told
