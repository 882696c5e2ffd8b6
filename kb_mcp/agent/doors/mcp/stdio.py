"""MCP over stdin and stdout: one client, whose keys are the environment's.

Floor: wing A, part of the MCP door. Lines are checked before the SDK parses them, since its
parser keeps the last of two equal names.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TextIO

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from typing_extensions import override

from kb_mcp.agent.doors.mcp.repeats import refuse_repeats


async def serve_stdio(
    server: Server[Any],  # the SDK's lifespan parameter
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
) -> None:
    """Serve until stdin ends; a call under way then still runs to its end.

    Without streams the process's own are taken over for good: what is printed by accident goes
    to stderr, and not into the protocol.
    """
    lines = _CheckedLines(stdin or _take_over_stdin())
    wire = anyio.AsyncFile(stdout or _take_over_stdout())
    async with stdio_server(lines, wire) as (messages, answers):
        # Before the first await here, and so before the first line is read.
        lines.answer = answers.send
        await server.run(messages, answers, server.create_initialization_options())


class _CheckedLines(anyio.AsyncFile[str]):
    """Lines of stdin without those that are refused, which it answers itself."""

    answer: Callable[[SessionMessage], Awaitable[None]]

    @override
    async def __aiter__(self) -> AsyncIterator[str]:
        async for line in super().__aiter__():
            refusal = refuse_repeats(line)
            if refusal is None:
                yield line
            else:
                await self.answer(SessionMessage(refusal))


def _take_over_stdin() -> TextIO:
    wire = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return io.TextIOWrapper(os.fdopen(wire, "rb"), encoding="utf-8", errors="replace")


def _take_over_stdout() -> TextIO:
    wire = os.dup(1)
    os.dup2(2, 1)
    return io.TextIOWrapper(os.fdopen(wire, "wb"), encoding="utf-8")
