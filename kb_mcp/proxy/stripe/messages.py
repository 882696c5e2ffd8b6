"""Requests and replies as values: between a client and us, and between us and Stripe.

Floor: below the edge and the governor. Pure. Who sends to Stripe is in `client`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct, field

from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, error_body

JSON = "application/json"
# Two readers would each take another of two values; a second Authorization is no key at all.
SINGLE = frozenset(
    "content-length content-type host idempotency-key keybrake-agent keybrake-session "
    "keybrake-subject stripe-version transfer-encoding".split()
)
SEND_WITHIN_MS: Final = 5_000
"""How long after it was reserved a request may still leave."""


class Request(Struct, frozen=True, kw_only=True):
    """One HTTP request. `raw_path` is as on the wire, without query; header names lower-case."""

    method: str
    raw_path: bytes
    query: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes
    request_id: str

    def header(self, name: str) -> str | None:
        """Return the first value of the header `name` (lower-case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    def repeated(self) -> str | None:
        """Return the first header that came twice and means one thing, or None."""
        named = [name for name, _ in self.headers if name in SINGLE]
        return next((name for at, name in enumerate(named) if name in named[:at]), None)


class Reply(Struct, frozen=True):
    """Status, body and the headers that differ from the standard ones."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def with_headers(self, **more: str | None) -> Reply:
        """Return this reply with `more` headers (underscores become dashes; None is left out)."""
        named = {name.replace("_", "-"): value for name, value in more.items() if value is not None}
        return Reply(self.status, self.body, {**self.headers, **named})


def refused(refusal: Refusal, **headers: str | None) -> Reply:
    """Write `refusal` in Stripe's error shape."""
    retry_after = refusal.facts.get("retry_after")
    # RFC 6750, 3.1: what is wrong is said of a token that was shown, not of none.
    error = "" if refusal.code is Code.VAULT_KEY_MISSING else ', error="invalid_token"'
    return Reply(refusal.status, error_body(refusal)).with_headers(
        Stripe_Should_Retry=refusal.code.should_retry,
        Retry_After=None if retry_after is None else str(retry_after),
        WWW_Authenticate=f'Bearer realm="kb-mcp"{error}' if refusal.status == 401 else None,
        **headers,
    )


class UpstreamRequest(Struct, frozen=True):
    """One request: `path` begins with a slash and holds the query, `body` is form-encoded.

    Of `trace` only the W3C's own two headers pass.
    """

    method: str
    path: str
    body: bytes | None = None
    stripe_version: str | None = None
    idempotency_key: str | None = None
    trace: Mapping[str, str] = field(default_factory=dict)


class Answered(Struct, frozen=True):
    """A whole answer came, of whatever status; `headers` are those of PASSED_ON, lower-case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class NotSent(Struct, frozen=True):
    """Proven: no byte of the request can have left. `facts` say more to the caller."""

    reason: str
    facts: Mapping[str, Fact] = field(default_factory=dict)


class Lost(Struct, frozen=True):
    """Maybe sent, and no whole answer came."""

    reason: str


UpstreamAnswer = Answered | NotSent | Lost


class Upstream(Protocol):
    """A way to Stripe."""

    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Send once, unless `deadline_ms` (on the boottime clock) has passed."""

    async def aclose(self) -> None:
        """Close the connections; what is still under way is lost."""
