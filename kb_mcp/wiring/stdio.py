"""Serving MCP over stdin and stdout, for one client.

Floor: wiring. A client starts one process for each conversation and waits for its tools, so this
imports no part of the proxy: wing B loads where no proxy is named and one runs in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kb_mcp.settings import Settings
from kb_mcp.wiring.agent import connect_billing


def ready_mcp_stdio(settings: Settings) -> Callable[[], None]:
    """Make ready to serve; what is returned serves MCP over stdin and stdout until stdin ends.

    Raises: SettingsError, StoreError, BindingError, SchemaError, AddressError.
    """
    from kb_mcp.agent.doors.mcp import create_server, serve_stdio

    billing = connect_billing(settings)
    server = create_server(lambda _: billing)
    return lambda: asyncio.run(serve_stdio(server))
