"""Building the way to Stripe: over the network, or the sandbox on its own file.

Floor: wiring.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from kb_mcp.proxy.stripe.client import InProcessUpstream, StripeUpstream
from kb_mcp.proxy.stripe.sends import Upstream
from kb_mcp.serving.machine import boottime_ms, host_ms, random_name
from kb_mcp.settings import SANDBOX_KEY, STRIPE_API_BASE, Settings
from kb_mcp.wiring.key_file import UpstreamWithKeyFile
from kb_mcp.wiring.opening import store_path
from kb_mcp.wiring.store import StoreError


def build_upstream(settings: Settings, sandbox_app: Any | None) -> Upstream:
    """Return the way to Stripe: over the network, or the sandbox in this process."""
    if settings.upstream_base is None:
        app = sandbox_app or build_sandbox(settings)
        return InProcessUpstream(app, SANDBOX_KEY, settings.upstream_timeout_ms)
    return UpstreamWithKeyFile(settings, _over_network, boottime_ms)


def _over_network(settings: Settings) -> Upstream:
    return StripeUpstream(
        base_url=settings.upstream_base or STRIPE_API_BASE,
        api_key=upstream_key(settings),
        timeout_ms=settings.upstream_timeout_ms,
        boottime_ms=boottime_ms,
        allow_http=settings.allow_http,
    )


def build_sandbox(settings: Settings) -> Any:
    """Return the sandbox on its own file beside the ledger, so that processes share it.

    Raises: StoreError.
    """
    from kb_mcp.sandbox.app import create_sandbox

    file = sandbox_file(settings)
    try:
        return create_sandbox(file, clock=host_ms, new_id=random_name)
    except sqlite3.Error as error:
        raise StoreError(f"cannot use the sandbox's file {file}: {error}") from error


def sandbox_file(settings: Settings) -> Path:
    """Return the file of the sandbox that belongs to the store."""
    return store_path(settings).with_name(f"{store_path(settings).name}.sandbox")


def upstream_key(settings: Settings) -> str:
    """Return the key that the proxy uses at Stripe; the sandbox's where none is set."""
    return SANDBOX_KEY if settings.stripe_key is None else settings.stripe_key.reveal()
