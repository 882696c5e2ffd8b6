"""Serves the agents' listener with a key put into every request that has none.

The conformance suite knows no authorization. Nothing but the header is added: Host, Origin, body
and answer are the server's own.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import uvicorn

from kb_mcp import create_app


def main() -> None:
    """Serve on a free port, and print the address."""
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
