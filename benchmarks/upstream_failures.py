"""Ten ways in which a send fails, through each client: what its error says, and what arrived.

Floor: outside the package; used by upstream_clients.py. Real sockets on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from upstream_senders import CHARGE, Limits, Sender

SOON: Final = Limits(total=0.5, connect=0.2, pool=0.2)
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LONGER: Final = OK.replace(b": 2", b": 99")
# How a connection's first and second request are treated.
TREATMENTS: Final = {
    "closed after the request": ("close",),
    "reset after the request": ("reset",),
    "no answer in time": ("hang",),
    "answer cut short": ("cut",),
    "answer is no HTTP": ("garbage",),
    "idle connection, then reset": ("ok", "reset"),
}


async def failure_table(senders: list[Sender]) -> list[dict[str, Any]]:
    """Return one row for each way of failing and each client."""
    rows = []
    for sender in senders:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))  # bound, not listening
            url = f"http://127.0.0.1:{bound.getsockname()[1]}"
            rows.append(await _failed(sender, "connection refused", url, []))
        rows.append(await _failed(sender, "no such name", "https://stripe.invalid", []))
        async with _peer(("ok",)) as (url, arrived):
            no_tls = url.replace("http:", "https:")
            rows.append(await _failed(sender, "no TLS at the other end", no_tls, arrived))
        async with _peer(("hang",)) as (url, arrived):
            rows.append(await _failed(sender, "pool full", url, arrived, busy=True))
        for case, treatment in TREATMENTS.items():
            async with _peer(treatment) as (url, arrived):
                rows.append(await _failed(sender, case, url, arrived, warm=len(treatment) - 1))
    return sorted(rows, key=lambda row: row["case"])


async def _failed(
    sender: Sender, case: str, url: str, arrived: list[bytes], *, warm: int = 0, busy: bool = False
) -> dict[str, Any]:
    limits = replace(SOON, connections=1) if busy else SOON
    async with sender.open(url, limits) as post:
        holder = asyncio.create_task(post(b"holder")) if busy else None
        while holder is not None and not arrived:  # noqa: ASYNC110 - the list of arrivals is plain
            await asyncio.sleep(0)
        for _ in range(warm):
            await post(b"warm")
        try:
            await post(CHARGE)
        except Exception as failure:  # noqa: BLE001 - every client has its own
            error = failure
        else:
            raise AssertionError(f"{sender.name}: {case} did not fail")
        if holder is not None:
            with contextlib.suppress(Exception):
                await holder
    copies = sum(body == CHARGE for body in arrived)
    never = sender.says_never(error)
    verdict = "WRONG" if never and copies else "right" if never is (copies == 0) else "careful"
    return {
        "case": case,
        "client": sender.name,
        "says": "never" if never else "maybe",
        "arrived": copies,
        "verdict": verdict,
        "error": type(error).__name__,
    }


@asynccontextmanager
async def _peer(treatment: tuple[str, ...]) -> AsyncIterator[tuple[str, list[bytes]]]:
    arrived: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            for step in (*treatment, "close"):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                arrived.append(await reader.readexactly(length))
                await _treat(step, writer, ended)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", arrived
    finally:
        ended.set()
        server.close()


async def _treat(step: str, writer: asyncio.StreamWriter, ended: asyncio.Event) -> None:
    match step:
        case "ok":
            writer.write(OK)
        case "cut":
            writer.write(LONGER)
            writer.close()
        case "garbage":
            writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
            writer.close()
        case "hang":
            await ended.wait()
        case "reset":
            plug = writer.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        case _:
            writer.close()
