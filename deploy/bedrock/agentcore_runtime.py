"""The tools as an MCP server on AgentCore Runtime: 0.0.0.0:8000, POST /mcp, stateless.

The platform signs callers in (SigV4 or JWT) and speaks to this server alone, so the vault keys are
the server's own, from its environment or Secrets Manager, and not a bearer's. The proxy, which
holds the Stripe key, is elsewhere: KEYBRAKE_PROXY_URL.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import argparse
import socket

import uvicorn
from mcp.server.transport_security import TransportSecuritySettings

from kb_mcp.agent.doors.mcp.server import create_server
from kb_mcp.settings import load_settings
from kb_mcp.wiring.agent import connect_billing


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - where the platform looks
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    billing = connect_billing(load_settings())
    app = create_server(lambda _: billing).streamable_http_app(
        streamable_http_path="/mcp",
        stateless_http=True,
        # No browser reaches a runtime's own network, and the platform's Host is not documented.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    listening = socket.create_server((given.host, given.port))
    print(f"MCP on http://{given.host}:{listening.getsockname()[1]}/mcp", flush=True)  # noqa: T201 - a script
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
