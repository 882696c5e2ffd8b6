"""Serving MCP over stdin and stdout, for one client.

Floor: wiring. A client starts one process for each conversation and waits for its tools, so this
imports no part of the proxy: wing B loads where no proxy is named and one runs in this process.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from kb_mcp.agent.doors.mcp.messages import Greeter
from kb_mcp.agent.doors.mcp.pipe import take_over
from kb_mcp.settings import Settings

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_at_once_on_signals() -> None:
    """End this process on SIGTERM and SIGINT while nothing is under way yet.

    As process 1 of a container it would ignore them otherwise.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda received, _: os._exit(128 + received))


def ready_mcp_stdio(settings: Settings) -> Callable[[], None]:
    """Make ready to serve; what is returned serves MCP over stdin and stdout until stdin ends.

    The client is greeted meanwhile: importing the SDK takes longer than some clients wait.
    Raises: SettingsError, StoreError, BindingError, SchemaError, AddressError.
    """
    greeter, pipe = Greeter(), take_over()
    pipe.start(greeter)

    from kb_mcp.agent.doors.mcp.server import create_server
    from kb_mcp.agent.doors.mcp.stdio import serve_stdio
    from kb_mcp.wiring.agent import open_billing

    # A proxy of this process and the server share one event loop: a call passes no thread.
    runner, opened = asyncio.Runner(), open_billing(settings)
    billing = runner.run(opened.__aenter__())

    async def serve() -> None:
        stop = asyncio.Event()
        _stop_on_signals(stop)
        server = create_server(lambda _: billing)
        try:
            await serve_stdio(server, pipe, greeted=greeter.answered, stop=stop)
        finally:
            await opened.__aexit__(None, None, None)

    def run() -> None:
        with runner:
            runner.run(serve())

    return run


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` on the first signal; a second one ends the process where it stands."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        end_at_once_on_signals()

    for number in _SIGNALS:
        loop.add_signal_handler(number, first)
