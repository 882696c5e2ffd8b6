"""How wing A reaches the proxy: where a vault key may be sent, whom to trust, and the client.

Floor: wing A, at the bottom. Nothing of the environment changes where a vault key goes: no proxies,
no .netrc, no redirects; plain http only to loopback unless it is allowed. ssl and httpx are
imported where they are needed: a door that lists its tools has no connection yet.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

    import httpx


class AddressError(ValueError):
    """The proxy's address would send a vault key in the clear, or is none."""


def check_address(proxy_url: str, *, allow_http: bool = False) -> None:
    """Check that a vault key may be sent to `proxy_url`.

    Raises: AddressError.
    """
    try:
        parts = urlsplit(proxy_url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
        parts = urlsplit("")
    plain = parts.query == "" and parts.fragment == "" and parts.username is None
    if parts.scheme not in {"http", "https"} or not host or not plain:
        raise AddressError("The proxy's address must look like http://127.0.0.1:8787.")
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise AddressError("The proxy's address must be https beyond this machine.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


CHAIN_MAX: Final = 10  # errors that each name another as their cause


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
        if self.cert_dir is not None:
            _load(context, "SSL_CERT_DIR", folder=self.cert_dir)
        for variable, file in {
            "SSL_CERT_FILE": self.cert_file,
            "KEYBRAKE_CA_FILE": self.ca_file,
        }.items():
            if file is not None:
                _load(context, variable, file=file)
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

    chain = _chain(error)
    for cause in chain:
        match cause:
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
            case _:
                continue
    # A connection that never came has no error of the system's with it.
    timed_out = any("Timeout" in type(cause).__name__ for cause in chain)
    return ("time-out", "no answer in time") if timed_out else ("network", "no connection")


def _load(
    context: ssl.SSLContext, variable: str, *, file: Path | None = None, folder: Path | None = None
) -> None:
    import ssl

    try:
        context.load_verify_locations(file, folder)
    except ssl.SSLError:
        raise TrustError(f"{variable} names a file that holds no certificates") from None
    except OSError as error:
        raise TrustError(f"{variable} cannot be read ({error.strerror})") from None


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < CHAIN_MAX:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


CONNECT_TIMEOUT_S: Final = 5
# Above the proxy's own wait for Stripe (25 s) and for another caller (10 s).
ANSWER_TIMEOUT_S: Final = 60
MAX_CONNECTIONS: Final = 100


def open_client(
    proxy_url: str,
    *,
    transport: httpx.BaseTransport | None = None,
    allow_http: bool = False,
    trust: Trust | None = None,
) -> httpx.Client:
    """Open the client for `proxy_url`; `transport` replaces the network, for an embedded proxy.

    Raises: AddressError, TrustError.
    """
    import ssl

    import httpx

    if transport is None:
        check_address(proxy_url, allow_http=allow_http)
    # Plain http never asks whom to trust, and redirects are off: loading every authority there is
    # would be a twentieth of a cold start for nothing.
    context = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if proxy_url.startswith("http://")
        else (trust or Trust()).context()
    )
    return httpx.Client(
        transport=transport,
        verify=context,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
    )
