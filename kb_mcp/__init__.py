"""kb-mcp: every intended charge once, inside a spend cap, by a key that may do nothing else.

Public names: `idempotency_key`, and `create_app` for a server of your own. The other public faces
are modules: `kb_mcp.lambda_entry`, `kb_mcp.converse`, `kb_mcp.enforcement`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kb_mcp.idempotency import idempotency_key
    from kb_mcp.wiring.app import create_app

__all__ = ["create_app", "idempotency_key"]
__version__ = "0.2.0"

_HOMES = {"idempotency_key": "kb_mcp.idempotency", "create_app": "kb_mcp.wiring.app"}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: a Lambda handler must not pay for the proxy, nor the proxy for MCP.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
