"""The addresses that `up` prints: where it is reached on this machine, and from others.

Floor: serving, at the bottom.
"""

from __future__ import annotations

import ipaddress
import socket

from kb_mcp.settings import Settings


def local_url(sock: socket.socket) -> str:
    """Return where this machine reaches `sock`; bound to every address, that is loopback."""
    host, port = sock.getsockname()[:2]
    if not on_every_address(sock):
        return _url(host, port)
    alone = sock.family == socket.AF_INET6 and sock.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    return _url("::1" if alone else "127.0.0.1", port)


def on_every_address(sock: socket.socket) -> bool:
    """Say whether `sock` is bound to 0.0.0.0 or to ::."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_unspecified


def client_url(sock: socket.socket, settings: Settings) -> str | None:
    """Return an address that a door may send a key to, and that the host check answers.

    None: `sock` is bound beyond this machine, and no host that clients may use is named.
    """
    host, port = sock.getsockname()[:2]
    if on_every_address(sock) or ipaddress.ip_address(host).is_loopback:
        return local_url(sock)
    if not settings.allowed_hosts:
        return None
    name = settings.allowed_hosts[0]
    if not settings.allow_http:
        return f"https://{name}"
    return f"http://{name}" if name.rpartition(":")[2].isdecimal() else f"http://{name}:{port}"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
