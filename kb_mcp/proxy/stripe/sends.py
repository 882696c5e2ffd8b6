"""A send and its answer, as values: what goes to Stripe, and what is known of it afterwards.

Floor: wing B, below the deciders. Pure. The clients themselves stand in `client`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct, field

SEND_WITHIN_MS: Final = 5_000
"""How long after it was reserved a request may still leave."""


class UpstreamRequest(Struct, frozen=True):
    """One request: `path` begins with a slash and holds the query, `body` is form-encoded.

    Of `trace` only the W3C's own two headers pass.
    """

    method: str
    path: str
    body: bytes | None
    stripe_version: str | None
    idempotency_key: str | None
    trace: Mapping[str, str] = field(default_factory=dict)


class Answered(Struct, frozen=True):
    """A whole answer came, of whatever status; `headers` are those of PASSED_ON, lower-case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class NotSent(Struct, frozen=True):
    """Proven: no byte of the request can have left."""

    reason: str


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
