"""Serves the agents' listener with a key put into every request that has none.

The conformance suite knows no authorization, and looks at some things only through tools of its
own (diagnostics). Nothing else is added: Host, Origin, body and answer are the server's own.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import uvicorn
from mcp.server.lowlevel import Server

from kb_mcp import create_app
from kb_mcp.agent.doors.mcp import http
from kb_mcp.agent.doors.mcp.server import BillingFor, create_server
from tests.clients.diagnostics import with_diagnostics


def main() -> None:
    """Serve on a free port, and print the address."""

    def with_the_suites_tools(billing_for: BillingFor) -> Server[Any]:
        return with_diagnostics(create_server(billing_for))

    http.create_server = with_the_suites_tools  # type: ignore[attr-defined]  # where the door takes it from
    app = create_app()
    key = os.environ["VAULT_KEY_OF_THE_TEST"].encode()  # noqa: TID251 - from the test that starts it

    async def keyed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not any(n == b"authorization" for n, _ in scope["headers"]):
            given = (b"authorization", b"Bearer " + key)
            scope = {**scope, "headers": [*scope["headers"], given]}
        await app(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"listening on http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    server = uvicorn.Server(uvicorn.Config(keyed, log_level="critical", ws="none", lifespan="on"))
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
