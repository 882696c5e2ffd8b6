"""The entry point of the bundle: MCP over stdio, as `kb-mcp mcp`."""

# ruff: noqa: INP001 - a script, no package

import os

from kb_mcp.cli import main

# A field that was left out arrives as empty text, and an empty setting is refused as a mistake.
for name in (
    "KEYBRAKE_VAULT_KEY_BILLING",
    "KEYBRAKE_VAULT_KEY_AUDIT",
    "KEYBRAKE_VAULT_KEY_REFUNDS",
):
    if os.environ.get(name) == "":  # noqa: TID251 - before the settings are read
        del os.environ[name]  # noqa: TID251 - as above

main(["mcp"])
