"""A faithful stand-in for Stripe, with a clock of its own and faults on demand.

Floor: beside the wings, which never import it. Clients reach it through Stripe's HTTP API alone.
"""

from kb_mcp.sandbox.app import Sandbox, create_sandbox, running, serve, start_in_thread
from kb_mcp.sandbox.steering import ConnectionDropped

__all__ = [
    "ConnectionDropped",
    "Sandbox",
    "create_sandbox",
    "running",
    "serve",
    "start_in_thread",
]
