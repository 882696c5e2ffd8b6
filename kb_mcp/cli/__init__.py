"""The command line: `kb-mcp` and `python -m kb_mcp`.

Floor: above wiring. One module a group of commands, imported by the command that is asked for; what
costs time to import, by the function that needs it: `--help` answers at once, and an MCP client
starts `kb-mcp mcp` for each conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import click
from typing_extensions import override

from kb_mcp.cli.output import Commands


class LateCommands(Commands):
    """A top group that knows its commands by name, and the module where each is found."""

    def __init__(self, *args: Any, homes: Mapping[str, str], **more: Any) -> None:
        """Find the command NAME in `homes[NAME]`, under its own name."""
        super().__init__(*args, **more)
        self._homes = homes

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, sorted; imports nothing."""
        return sorted(self._homes)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, imported if it was not; None for a name that there is not."""
        # Where it is not known, click names those that are written nearly so, out of all.
        for name in (cmd_name,) if cmd_name in self._homes else self._homes:
            if name not in self.commands:
                self.add_command(getattr(import_module(self._homes[name]), name))
        return super().get_command(ctx, cmd_name)


__all__ = ["main"]

_MODULES = {
    "audit": "audit",
    "doctor": "doctor",
    "export": "export",
    "keys": "keys spend",
    "operations": "operations",
    "people": "approvals grants operators",
    "reconcile": "adopt reconcile recover",
    "serve": "demo mcp sandbox up",
    "settings_cmd": "migrate settings",
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
