"""The command line: `kb-mcp` and `python -m kb_mcp`.

Floor: above wiring. One small module a group of commands, imported by the command that is asked
for; what costs time to import, by the function that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from types import MappingProxyType

import click

from kb_mcp.cli.late import LateCommands

__all__ = ["main"]

_MODULES = {
    "approvals": "approvals",
    "audit": "audit",
    "doctor": "doctor",
    "export": "export",
    "grants": "grants",
    "keys": "keys",
    "operations": "operations",
    "operators": "operators",
    "reconcile": "adopt reconcile recover",
    "serve": "demo mcp sandbox up",
    "settings_cmd": "migrate settings",
    "spend": "spend",
}
_HOMES = {
    command: f"kb_mcp.cli.{module}"
    for module, commands in _MODULES.items()
    for command in commands.split()
}


@click.group(
    cls=LateCommands,
    homes=MappingProxyType(_HOMES),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="kb-mcp-billing", message="%(package)s %(version)s")
def main() -> None:
    """Charge through Stripe exactly once, within caps, from AI agents.

    Example: kb-mcp up
    """
