"""Names and addresses of a listener: those that `up` prints, and those that it answers to.

Floor: serving, around an ASGI app. Against DNS rebinding, Host and Origin are checked: loopback
names always pass; anything else must be named in KEYBRAKE_ALLOWED_HOSTS, on a loopback address too.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Container
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from kb_mcp.in_process import AsgiApp, Message, Receive, Send
from kb_mcp.serving.machine import new_id
from kb_mcp.settings import Settings


def local_url(sock: socket.socket) -> str:
    """Return where this machine reaches `sock`; bound to every address, that is loopback."""
    host, port = sock.getsockname()[:2]
    if on_every_address(sock):
        alone = sock.family == socket.AF_INET6 and sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        )
        host = "::1" if alone else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# A registered name or an address, and perhaps a port: no user, no second port, no white space.
_HOST_PORT = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_HOST = (
    421,
    "host_unknown",
    "This server does not answer to that Host. Add it to KEYBRAKE_ALLOWED_HOSTS.",
)
_ORIGIN = (403, "origin_not_allowed", "This Origin is not allowed.")


def guard_hosts(
    app: AsgiApp, allowed: tuple[str, ...], note: Callable[[str], None] | None = None
) -> AsgiApp:
    """Return `app` behind a check: 421 to an unknown Host and 403 to an unknown Origin.

    `allowed` are hosts with or without port, lower-case. `note` counts the code of what is refused:
    nobody knows yet whose request it is.
    """

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        wrong = _wrong(scope["headers"], allowed) if scope["type"] == "http" else None
        if wrong is None:
            await app(scope, receive, send)
            return
        status, code, message = wrong
        if note is not None:
            note(code)
        error = {"type": "invalid_request_error", "code": code, "message": message}
        headers = {"stripe-should-retry": "false", "cache-control": "no-store"}
        headers["request-id"] = new_id("req")
        await JSONResponse({"error": error}, status, headers)(scope, receive, send)

    return guarded


def _wrong(
    headers: list[tuple[bytes, bytes]], allowed: tuple[str, ...]
) -> tuple[int, str, str] | None:
    hosts, origins = ([v for n, v in headers if n == name] for name in (b"host", b"origin"))
    if len(hosts) != 1 or not known_host(hosts[0].decode("latin-1"), allowed):
        return _HOST
    known = all(known_host(_host_of(origin), allowed) for origin in origins)
    return None if known and len(origins) <= 1 else _ORIGIN


def known_host(host: str, allowed: Container[str]) -> bool:
    """Say whether a listener answers to `host`, as a request names it."""
    match = _HOST_PORT.fullmatch(host.lower())
    if match is None:
        return False
    return match[1] in _LOOPBACK or match[0] in allowed or match[1] in allowed


def _host_of(origin: bytes) -> str:
    try:
        parts = urlsplit(origin.decode("latin-1"))
    except ValueError:  # no URL at all, like http://[
        return ""
    # An origin is scheme and host, no more.
    plain = parts.scheme in {"http", "https"} and not (parts.path or parts.query or parts.fragment)
    return parts.netloc if plain else ""
