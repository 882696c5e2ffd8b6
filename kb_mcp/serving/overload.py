"""Turning requests away unread, while as many wait as may.

Floor: serving, below listener. What a crowd is refused for must not be spent on refusing it: such a
request passes llhttp, which finds where it ends, and next to nothing of Python's. Whatever is not
plainly one whole request to Stripe's surface goes the usual way, and hears the same there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import httptools

_SURFACE: Final = (b"/v1/", b"/stripe/v1/")
# How such a request is framed is judged with its headers, which nobody looks at here.
_FRAMED: Final = (b"transfer-encoding", b"upgrade", b"expect")


class OverloadGate:
    """Knows when to turn away: the application's count lags behind by one pass of the loop."""

    def __init__(self, free: Callable[[], int]) -> None:
        """Let in `free()` requests, those counted that the application has not seen yet."""
        self._free = free
        self._entering = 0

    def shut(self) -> bool:
        """Say whether there is room for no request more."""
        return self._free() <= self._entering

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count a request until the application has done so."""
        if self._entering == 0:
            loop.call_soon(self._entered)
        self._entering += 1

    def _entered(self) -> None:
        # Next in the queue of `loop` are the tasks of all who entered; nothing is read before.
        self._entering = 0


class _Ends:
    """What the parser is asked for: how many requests begin and end, for what, and what then."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.url = b""
        self.stays = False
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        self.stays = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.ended += 1


def stays_after(data: bytes) -> bool | None:
    """Return whether who sent `data` keeps the connection; None unless it is one whole request."""
    lowered = data.lower()
    for word in _FRAMED:
        if word in lowered:
            return None
    ends = _Ends()
    try:
        ends.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    finally:
        del ends.parser  # they hold each other, and no collector comes by here soon
    whole = (ends.begun, ends.ended) == (1, 1) and ends.url.startswith(_SURFACE)
    return ends.stays if whole else None
