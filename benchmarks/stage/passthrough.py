"""A proxy that governs nothing: raw ASGI in, the same client as kb-mcp's out.

Started by itself: passthrough.py UPSTREAM [FILE]. Its port is the first line it says. With FILE
it writes 4 KiB there and waits for the disk before it sends and again before it answers: the least
that a charge which is reserved and settled durably can cost.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import uvicorn
from pyreqwest.client import Client

from kb_mcp.proxy.stripe.client import open_client

CONFIG = "uvicorn, uvloop, httptools, raw ASGI; pyreqwest, HTTP/1.1, 256 connections at most"
_TIMEOUT_MS = 25_000
_PAGE, _PAGES = 4096, 1000
_PASSED = (b"content-type", b"authorization", b"idempotency-key")


class PassThrough:
    """The ASGI application."""

    def __init__(self, upstream: str, client: Client, file: str | None = None) -> None:
        """Pass everything to `upstream`; with `file`, durably."""
        self._upstream = upstream
        self._disk = None if file is None else _prepared(file)
        self._place = 0
        self._client = client

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request on, and its answer back."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        builder = self._client.request(scope["method"], self._upstream + scope["path"])
        for name, value in scope["headers"]:
            if name in _PASSED:
                builder = builder.header(name.decode(), value.decode())
        if body:
            builder = builder.body_bytes(body)
        answer = bytearray()
        self._sync()
        async with builder.build_streamed() as response:
            while (chunk := await response.body_reader.read_chunk()) is not None:
                answer += chunk
        self._sync()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(answer)})

    def _sync(self) -> None:
        if self._disk is not None:
            os.pwrite(self._disk, b"x" * _PAGE, _PAGE * self._place)
            os.fdatasync(self._disk)
            self._place = (self._place + 1) % _PAGES


def _prepared(file: str) -> int:
    """Return a descriptor of a file whose pages are all on the disk."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, bytes(_PAGE * _PAGES), 0)
    os.fsync(descriptor)
    return descriptor


def main() -> None:
    """Serve on a free port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"port {listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        PassThrough(sys.argv[1], open_client(_TIMEOUT_MS), *sys.argv[2:3]),
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
