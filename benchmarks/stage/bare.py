"""Bare counterparts of what kb-mcp starts: an MCP server of two tools, and a handler for Lambda.

bare.py stdio | http | lambda EVENT | governed EVENT
"""

from __future__ import annotations

import json
import sys
from typing import Any


def serve_stdio() -> None:
    """Serve two tools over stdin and stdout, as the SDK's first page shows."""
    _server().run("stdio")


def serve_http() -> None:
    """Serve the same over HTTP on a free port, whose number is said first."""
    import socket

    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    app = _server().streamable_http_app()
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error")
    uvicorn.Server(config).run(sockets=[listener])


def answer_naive(event: dict[str, Any]) -> None:
    """Answer one event with the handler that samples publish, `import stripe` and all."""
    from kb_mcp.demo.naive import without_key

    print(json.dumps(without_key(event, None)), flush=True)


def answer_governed(event: dict[str, Any]) -> None:
    """Answer one event with kb-mcp's handler."""
    from kb_mcp.lambda_entry import handler

    print(json.dumps(handler(event, None)), flush=True)


def _server() -> Any:
    from mcp.server import MCPServer

    server = MCPServer("bare")

    @server.tool()
    def charge(customer_id: str, amount_cents: int, billing_period: str) -> str:
        """Charge a customer."""
        return f"{customer_id} {amount_cents} {billing_period}"

    @server.tool()
    def charge_status(charge_id: str) -> str:
        """Say what became of a charge."""
        return charge_id

    return server


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stdio"]:
            serve_stdio()
        case ["http"]:
            serve_http()
        case ["lambda", event]:
            answer_naive(json.loads(event))
        case ["governed", event]:
            answer_governed(json.loads(event))
        case _:
            sys.exit(__doc__)
