"""A server in Stripe's place that treats each request by a script, well or badly."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kb_mcp.proxy.stripe.client import ANSWER_MAX_BYTES

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Script = Callable[["Call"], Awaitable[None]]


class Call:
    """A request that arrived at a peer, which now decides how to treat it."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.line, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        self.headers = {name.lower(): value for name, value in pairs}
        assert len(self.headers) == len(pairs), "a header came twice"
        self.body = body
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        plug = self._writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


class Peer:
    """A server that notes what arrives and treats each request by its script."""

    def __init__(self, script: Script) -> None:
        self.calls: list[Call] = []
        self.connections = 0
        self.url = ""
        self._script = script
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(Call(head, b"", writer).headers.get("content-length", "0"))
                self.calls.append(Call(head, await reader.readexactly(length), writer))
                await self._script(self.calls[-1])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client closed, or we did
        finally:
            self._open.discard(writer)
            writer.close()

    def drop_all(self) -> None:
        for writer in tuple(self._open):
            writer.transport.abort()


@asynccontextmanager
async def peer(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    made = Peer(script)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    made.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    try:
        yield made
    finally:
        server.close()
        made.drop_all()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)


async def answer(call: Call) -> None:
    await call.write(OK)


async def reset(call: Call) -> None:
    call.reset()


async def hang_up(call: Call) -> None:
    call.close()


async def say_nothing(call: Call) -> None:
    del call


async def stop_in_the_body(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    call.close()


async def reset_in_the_body(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    call.reset()


async def stall_in_the_body(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


async def stop_in_the_head(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    call.close()


async def stop_in_a_chunk(call: Call) -> None:
    await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{")
    call.close()


async def speak_no_http(call: Call) -> None:
    await call.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    call.close()


async def flood(call: Call) -> None:
    length = ANSWER_MAX_BYTES + 1
    await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b" " * length)


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    begins = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins.replace(year=2100))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "peer.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
