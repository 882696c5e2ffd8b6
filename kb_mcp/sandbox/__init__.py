"""A faithful stand-in for Stripe, with a clock of its own and faults on demand.

Floor: beside the wings, which never import it. Clients reach it through Stripe's HTTP API alone.
"""

from kb_mcp.sandbox.app import Sandbox, create_sandbox
from kb_mcp.sandbox.faults import ConnectionDropped
from kb_mcp.sandbox.server import running, serve, start_in_thread

__all__ = [
    "ConnectionDropped",
    "Sandbox",
    "create_sandbox",
    "running",
    "serve",
    "start_in_thread",
]
