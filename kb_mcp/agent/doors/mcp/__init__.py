"""The MCP door, on stdio and on streamable HTTP.

Floor: wing A, a door.
"""

from __future__ import annotations

from kb_mcp.agent.doors.mcp.http import HttpDoor, http_app
from kb_mcp.agent.doors.mcp.server import BillingFor, create_server
from kb_mcp.agent.doors.mcp.stdio import serve_stdio

__all__ = ["BillingFor", "HttpDoor", "create_server", "http_app", "serve_stdio"]
