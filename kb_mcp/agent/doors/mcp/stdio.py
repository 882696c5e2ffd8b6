"""MCP over stdin and stdout: one client, whose keys are the environment's.

Floor: wing A, part of the MCP door. Lines are read strictly (messages) before the SDK sees them.
The SDK serves one protocol era for as long as its stream is open, and the first request decides
which. Clients ask with `server/discover` whether the newer era is served and then shake hands in
the older one on the same pipe, so that a discovery alone decides nothing here.
Source: modelcontextprotocol.io/specification (2026-07-28), Versioning.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream, TaskGroup
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import ValidationError

from kb_mcp.agent.doors.mcp.messages import Json, NoMessage, read_message
from kb_mcp.agent.doors.mcp.pipe import Line, Pipe, take_over

logger = logging.getLogger(__name__)

_DISCOVER: Final = "server/discover"
_HANDSHAKE: Final = "initialize"


async def serve_stdio(
    server: Server[Any],  # the SDK's lifespan parameter
    pipe: Pipe | None = None,
    *,
    greeted: Collection[str | int] = (),
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until stdin ends or `stop` is set; a call under way still runs to its end.

    `pipe` is one that was started, on which the requests `greeted` are answered already; without
    it the process's own streams are taken over.
    """
    if pipe is None:
        pipe = take_over()
        pipe.start()
    stop = stop or asyncio.Event()
    lines = _lines_of(pipe, stop)
    async with anyio.create_task_group() as group:
        client = _Client(server, pipe, group, set(greeted))
        while (line := await lines.get()) is not None and not stop.is_set():
            pipe.taken()
            await client.take(line)
        await client.leave()
    pipe.end()


def _lines_of(pipe: Pipe, stop: asyncio.Event) -> asyncio.Queue[Line]:
    """Return the lines as they arrive; None is their end, or the end of waiting for more."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[Line] = asyncio.Queue()

    def deliver(line: Line) -> None:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:  # the loop has ended, and with it the interest in lines
            return

    pipe.deliver_to(deliver)
    stopped = asyncio.ensure_future(stop.wait())
    stopped.add_done_callback(lambda _: lines.put_nowait(None))
    return lines


@dataclass(slots=True)
class _Client:
    """The one client: hands its messages to the SDK, and the SDK's answers to it."""

    server: Server[Any]
    pipe: Pipe
    group: TaskGroup
    greeted: set[str | int]
    open: set[object] = field(default_factory=set)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    serving: ObjectSendStream[SessionMessage | Exception] | None = None
    only_discovered: bool = True

    async def take(self, line: bytes) -> None:
        """Answer what is no message, and hand on what is one."""
        read = read_message(line)
        if isinstance(read, NoMessage):
            logger.warning("A line on stdin was refused: %s", read.message)
            self.pipe.write(json.dumps(read.document()).encode())
            return
        try:
            message = jsonrpc_message_adapter.validate_python(read, by_name=False)
        except ValidationError:
            # Of what is well-formed so far only an answer can be wrong, and answers get none.
            logger.warning("An answer on stdin was dropped: it is not well-formed.")
            return
        await self._route(read)
        await self._stream().send(SessionMessage(message))

    async def leave(self) -> None:
        """Wait for the answers that are under way, then end the SDK's serving."""
        while self.open:
            self.settled.clear()
            await self.settled.wait()
        if self.serving is not None:
            await self.serving.aclose()
            self.serving = None

    async def _route(self, read: Json) -> None:
        method = read.get("method")
        if method == "notifications/cancelled":
            # Nobody waits for its answer any more, and none is sent.
            self._settle((read.get("params") or {}).get("requestId"))
        if method is None or "id" not in read:
            return
        if method == _HANDSHAKE and self.only_discovered:
            # After nothing but discoveries a handshake opens the older era.
            await self.leave()
        self.only_discovered = self.only_discovered and method == _DISCOVER
        self.open.add(read["id"])

    def _stream(self) -> ObjectSendStream[SessionMessage | Exception]:
        if self.serving is None:
            inward, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
            answers, outward = anyio.create_memory_object_stream[SessionMessage](0)
            options = self.server.create_initialization_options()
            self.group.start_soon(self.server.run, messages, answers, options)
            self.group.start_soon(self._write, outward)
            self.serving = inward
        return self.serving

    async def _write(self, outward: ObjectReceiveStream[SessionMessage]) -> None:
        async with outward:
            async for each in outward:
                answers = isinstance(each.message, JSONRPCResponse | JSONRPCError)
                request_id = getattr(each.message, "id", None) if answers else None
                if request_id in self.greeted:
                    self.greeted.discard(request_id)
                else:
                    text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                    self.pipe.write(text.encode())
                self._settle(request_id)

    def _settle(self, request_id: object) -> None:
        if isinstance(request_id, str | int):
            self.open.discard(request_id)
            self.settled.set()
