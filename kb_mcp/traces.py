"""W3C trace context: which trace a request belongs to, as two headers or two fields say it.

Floor: the shared ground. Pure: agents hand a trace to the proxy, and the proxy to Stripe. What
does not have the standard's form is no trace, so that nothing else of a client's travels as one.
Source: w3.org/TR/trace-context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PARENT: Final = "traceparent"
STATE: Final = "tracestate"

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace, the span that asks, and what vendors add; read by `read_trace` alone."""

    parent: str
    state: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that hand it on."""
        return {PARENT: self.parent} | ({} if self.state is None else {STATE: self.state})


def read_trace(carrier: Mapping[str, object]) -> Trace | None:
    """Return the trace that `traceparent` and `tracestate` in `carrier` name, None if they don't.

    A malformed state is left out, and so are blanks around a good one. Of versions after 00 the
    form that they all share is read.
    """
    parent, state = carrier.get(PARENT), carrier.get(STATE)
    if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
        return None
    stated = state.strip(" \t") if isinstance(state, str) else ""
    return Trace(parent, stated if _STATE.fullmatch(stated) else None)
