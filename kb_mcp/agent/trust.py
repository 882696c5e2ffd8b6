"""Whose certificates a door believes, and why a proxy was not reached.

Floor: wing A, at the bottom. Imports ssl where it is needed: a door that lists its tools has no
connection yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

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
