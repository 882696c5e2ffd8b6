"""The line to a proxy over the network: where a vault key may be sent, and whom to trust.

Floor: wing A, above line. Nothing of the environment changes where a vault key goes: no proxies,
no .netrc, no redirects; plain http only to loopback unless it is allowed. ssl and httpx are
imported where they are needed: a door that lists its tools has no connection yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from typing_extensions import override

from kb_mcp.agent.client.line import (
    ANSWER_TIMEOUT_S,
    Answer,
    Line,
    MaybeSentError,
    NeverSentError,
    Request,
)
from kb_mcp.agent.wording import UNREACHED
from kb_mcp.environment import is_address, is_private_line

if TYPE_CHECKING:
    import ssl

    import httpx

T = TypeVar("T")
CHAIN_MAX: Final = 10  # errors that each name another as their cause
CONNECT_TIMEOUT_S: Final = 5
MAX_CONNECTIONS: Final = 100
JITTER_MAX: Final = 500  # thousandths by which a pause may be longer
_TIMEOUTS: Final = {
    "connect": CONNECT_TIMEOUT_S,
    **dict.fromkeys(("read", "write", "pool"), ANSWER_TIMEOUT_S),
}


class AddressError(ValueError):
    """The proxy's address would send a vault key in the clear, or is none."""


def check_address(proxy_url: str, *, allow_http: bool = False) -> None:
    """Check that a vault key may be sent to `proxy_url`.

    Raises: AddressError.
    """
    if not is_address(proxy_url):
        raise AddressError("The proxy's address must look like http://127.0.0.1:8787.")
    if not allow_http and not is_private_line(proxy_url):
        raise AddressError("The proxy's address must be https beyond this machine.")


class TrustError(OSError):
    """A file or folder of certificates cannot be used; the message names its variable."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Files of certificates: `cert_file` and `cert_dir` replace the usual ones, `ca_file` adds."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    cert_dir: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context of a client that checks names and chains. Raises: TrustError."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.cert_file is None and self.cert_dir is None:
            import certifi

            context.load_default_certs()
            # Small images have no authorities of the system's.
            context.load_verify_locations(certifi.where())
        _load(context, "SSL_CERT_DIR", folder=self.cert_dir)
        _load(context, "SSL_CERT_FILE", file=self.cert_file)
        _load(context, "KEYBRAKE_CA_FILE", file=self.ca_file)
        return context

    def check_ca_file(self) -> None:
        """Check that `ca_file` holds certificates. Raises: TrustError."""
        import ssl

        if self.ca_file is not None:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "KEYBRAKE_CA_FILE", file=self.ca_file)


def why_unreached(error: BaseException) -> tuple[str, str]:
    """Return why nothing was reached: in a word for a model, and with details for an operator."""
    import socket
    import ssl

    timed_out = False  # a connection that never came has no error of the system's with it
    cause: BaseException | None = error
    for _ in range(CHAIN_MAX):
        match cause:
            case None:
                break
            case ssl.SSLCertVerificationError():
                return "certificate", cause.verify_message
            case TrustError():
                return "certificate", str(cause)
            case ssl.SSLError():
                return "TLS", str(cause.reason or "the handshake broke").lower().replace("_", " ")
            case socket.gaierror():
                return "name unknown", cause.strerror or "the name is not found"
            case ConnectionRefusedError():
                return "connection refused", "nothing listens there"
            case TimeoutError():
                return "time-out", "no answer in time"
            case OSError() if cause.strerror:
                return "network", cause.strerror
        timed_out = timed_out or "Timeout" in type(cause).__name__
        cause = cause.__cause__ or cause.__context__
    return ("time-out", "no answer in time") if timed_out else ("network", "no connection")


def _load(
    context: ssl.SSLContext, variable: str, *, file: Path | None = None, folder: Path | None = None
) -> None:
    import ssl

    if file is None and folder is None:
        return
    try:
        context.load_verify_locations(file, folder)
    except ssl.SSLError:
        raise TrustError(f"{variable} names a file that holds no certificates") from None
    except OSError as error:
        raise TrustError(f"{variable} cannot be read ({error.strerror})") from None


class NetworkLine(Line):
    """Requests over one pool of connections, from whatever thread; each blocks its own."""

    def __init__(
        self,
        proxy_url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        allow_http: bool = False,
        trust: Trust | None = None,
        jitter: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """Lead to `proxy_url`, or where `transport` does; opened when the first request needs it.

        `jitter(n)` is chance below n: callers that failed together do not try again together.
        Raises: AddressError, when `proxy_url` would send a vault key in the clear.
        """
        if transport is None:
            check_address(proxy_url, allow_http=allow_http)
        self._url = proxy_url.rstrip("/")
        self._trust = trust
        self._jitter = jitter
        self._lock = threading.Lock()
        self._opened = transport

    @override
    async def exchange(self, request: Request) -> Answer:
        import httpx

        try:
            pool = self._pool()
            sent = httpx.Request(
                request.method,
                self._url + request.path,
                headers=dict(request.headers),
                content=request.body or None,
                extensions={"timeout": _TIMEOUTS},
            )
        except (OSError, ValueError) as error:  # no descriptor left, no certificates
            raise self._unreached(error) from error
        try:
            answer = pool.handle_request(sent)
            try:
                body = answer.read()
            finally:
                answer.close()
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.UnsupportedProtocol,
        ) as error:
            raise self._unreached(error) from error  # failures that precede the first byte
        except Exception as error:
            # After a full wait another one helps nobody; after a broken line the proxy knows.
            broken = isinstance(error, httpx.HTTPError)
            again = broken and not isinstance(error, httpx.TimeoutException)
            raise MaybeSentError(again=again) from error
        return Answer(answer.status_code, dict(answer.headers), body)

    @override
    async def pause(self, seconds: float) -> None:
        longer = 1 + self._jitter(JITTER_MAX) / 1000
        time.sleep(seconds * longer)  # noqa: ASYNC251 - on a thread that may block

    @override
    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            work.send(None)  # it waits for nothing: it runs to its end, here and now
        except StopIteration as done:
            result: T = done.value
            return result
        work.close()
        raise RuntimeError("this line is asked on an event loop")

    @override
    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    def _pool(self) -> httpx.BaseTransport:
        with self._lock:
            if self._opened is None:
                self._opened = open_transport(self._url, self._trust)
            return self._opened

    def _unreached(self, error: Exception) -> NeverSentError:
        cause, detail = why_unreached(error)
        told = f"The proxy at {self._url} cannot be reached: {cause}: {detail}"
        if cause == "certificate":
            told += ". KEYBRAKE_CA_FILE, SSL_CERT_FILE or SSL_CERT_DIR name whom to trust."
        # A certificate that is not trusted is none a moment later either.
        again = cause != "certificate"
        return NeverSentError(UNREACHED.format(cause=cause), told, again=again)


def open_transport(proxy_url: str, trust: Trust | None = None) -> httpx.BaseTransport:
    """Open a pool of connections to `proxy_url`, which was checked. Raises: TrustError."""
    import ssl

    import httpx

    # Plain http never asks whom to trust: loading every authority there is would be a twentieth of
    # a cold start for nothing.
    context = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if proxy_url.startswith("http://")
        else (trust or Trust()).context()
    )
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
    return httpx.HTTPTransport(verify=context, trust_env=False, limits=limits)
