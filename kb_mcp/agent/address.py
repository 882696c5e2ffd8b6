"""Where a vault key may be sent: https, or plain http to this machine.

Floor: wing A, at the bottom. Pure. Apart from transport, which imports httpx: an address is
checked when a door opens, and httpx is needed when a tool is called.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


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
