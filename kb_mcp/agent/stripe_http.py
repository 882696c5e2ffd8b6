"""The Stripe SDK's HTTP client over httpx, which knows "never sent" from "maybe sent".

Floor: wing A, above transport. Importing it imports the Stripe SDK (110 ms), so that billing
does it late.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx
import stripe
from typing_extensions import override

from kb_mcp.agent.transport import why_unreached

# Failures that precede the first byte of a request.
_BEFORE_SENDING: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.ProxyError,
)


class _UnansweredError(stripe.APIConnectionError):
    def __init__(self, reason: str, *, should_retry: bool) -> None:
        # The SDK ships this constructor without types.
        super().__init__(reason, should_retry=should_retry)  # type: ignore[no-untyped-call]  # the SDK's


class NeverSentError(_UnansweredError):
    """No byte of this request left this machine, and none of its earlier tries is in doubt."""


class MaybeSentError(_UnansweredError):
    """The request, or an earlier try of it, may have arrived, and no answer came."""


class ProxyHTTPClient(stripe.HTTPClient):
    """A `stripe.HTTPClient` that sends through one shared `httpx.Client`."""

    name = "httpx"

    def __init__(self, http: httpx.Client) -> None:
        """Send through `http`, which the caller opens and closes."""
        super().__init__()
        self._http = http
        self._tries = threading.local()

    def begin(self) -> None:
        """Begin a call of this thread: nothing of it was tried yet."""
        self._tries.tried = self._tries.doubtful = False

    @property
    def tried(self) -> bool:
        """Whether this thread's last call came as far as a try to send."""
        return bool(getattr(self._tries, "tried", False))

    @property
    def doubtful(self) -> bool:
        """Whether a try of this thread's last call may have been sent without an answer."""
        return bool(getattr(self._tries, "doubtful", False))

    @override
    def request_with_retries(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        post_data: Any = None,  # the SDK's own type
        max_network_retries: int | None = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        self._tries.doubtful = False
        return super().request_with_retries(
            method, url, headers, post_data, max_network_retries, _usage=_usage
        )

    @override
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,  # as above
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        self._tries.tried = True
        try:
            response = self._http.request(
                method, url, headers=dict(headers or {}), content=post_data or None
            )
        except _BEFORE_SENDING as error:
            if self.doubtful:
                raise MaybeSentError("not reached again", should_retry=True) from error
            # A certificate that is not trusted is none a moment later either.
            again = why_unreached(error)[0] != "certificate"
            raise NeverSentError("not reached", should_retry=again) from error
        except httpx.HTTPError as error:
            self._tries.doubtful = True
            # After a full wait another one helps nobody; after a broken line the proxy knows.
            again = not isinstance(error, httpx.TimeoutException)
            raise MaybeSentError("no answer", should_retry=again) from error
        return response.text, response.status_code, response.headers

    @override
    def _add_telemetry_header(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        # The host program's timings are none of the proxy's business.
        return headers

    @override
    def close(self) -> None:
        self._http.close()


def settle_telemetry() -> None:
    """Let the SDK look for its telemetry id now, where a failure harms no call.

    It looks once in a process, in the home folder, and raises where the user has none.
    """
    with contextlib.suppress(ImportError, RuntimeError, OSError, KeyError):
        from stripe._telemetry_id import get_telemetry_id

        get_telemetry_id()
