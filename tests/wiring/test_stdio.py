"""MCP over stdin and stdout starts without what only a proxy, or a charge, needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

HELLO: list[dict[str, Any]] = [
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]
KEYS = {
    "KEYBRAKE_PROXY_URL": "http://127.0.0.1:9",  # nobody is asked before a tool is called
    "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_billing",
    "KEYBRAKE_VAULT_KEY_AUDIT": "vk_test_audit",
}
# Beside a proxy that runs elsewhere: wing B, its store, its listener, and the line to it.
NEEDLESS = (
    *("kb_mcp.proxy", "kb_mcp.sandbox", "kb_mcp.demo", "kb_mcp.cli.keys", "kb_mcp.cli.opening"),
    *("kb_mcp.wiring.proxy", "kb_mcp.wiring.serve", "kb_mcp.wiring.store"),
    *("sqlite3", "sqlite_utils", "psycopg", "pyreqwest", "jinja2", "uvloop"),
    *("httpx", "stripe", "rich"),
)
CODE = (
    "import atexit, sys\n"
    "from kb_mcp.cli import main\n"
    "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    "main(['mcp'])\n"
)


def ask(process: subprocess.Popen[str], message: dict[str, Any]) -> Any:
    """Send one message; a request is answered before the next one, as clients do it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline()) if "id" in message else None


def test_a_server_that_lists_its_tools_has_imported_no_more_than_it_needs() -> None:
    inherited = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process

    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        env=inherited | KEYS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        answers = [ask(process, message) for message in HELLO]
        _, told = process.communicate()

    listed = answers[-1]["result"]["tools"]
    assert [tool["name"] for tool in listed] == ["charge", "charge_status"]
    imported = set(told.split())
    assert "mcp.server" in imported
    assert imported & set(NEEDLESS) == set()
