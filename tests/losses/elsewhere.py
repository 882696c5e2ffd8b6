"""A host in test mode: its Stripe is the sandbox behind a socket, and its clock is the host's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kb_mcp.wiring.upstream import build_sandbox
from tests.losses.host import Host
from tests.sandbox.driver import start_in_thread

KEY = "rk_test_Abc"


@contextmanager
def in_test_mode(host: Host, key: str = KEY, **more: str) -> Iterator[Host]:
    """Put the sandbox of `host` behind a socket, and have it reached with a key of test mode."""
    sandbox = build_sandbox(host.settings)
    try:
        with start_in_thread(sandbox) as url:
            extra = {"KEYBRAKE_STRIPE_KEY": key, "KEYBRAKE_STRIPE_API_BASE": url} | more
            yield replace(host, extra=extra)
    finally:
        sandbox.close()
