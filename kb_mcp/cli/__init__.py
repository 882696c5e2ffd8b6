"""The command line: `kb-mcp` and `python -m kb_mcp`.

Floor: above wiring. One module a group of commands, imported by the command that is asked for:
`--help` answers at once, and an MCP client starts `kb-mcp mcp` for each conversation.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from typing_extensions import override

from kb_mcp.cli.output import TYPED, WrongUse, other_distribution, told_in_our_way
from kb_mcp.serving.process_setup import collect_seldom

__all__ = ["group", "main"]

# Each module of this package: its commands, and the first sentence of their help.
_MODULES = {
    "audit": {"audit": "The append-only record of every request and every operator's act."},
    "doctor": {
        "doctor": "Check settings, store, invariants, clock, upstream key, vault keys, grants and "
        "issuers."
    },
    "export": {"export": "Export the tools' schemas, to stdout or into a folder."},
    "keys": {
        "grants": "Which identities of a provider may use which vault key.",
        "keys": "Vault keys: what an agent holds instead of a Stripe key.",
        "operators": "People who may use the dashboard and the admin API; the audit names them.",
        "spend": "Show cap, spend and what is left, per key and window; in JSON in minor units.",
    },
    "operations": {
        "approvals": "Charges and refunds that wait for an operator.",
        "operations": "Charges, refunds and other billing acts in the ledger.",
    },
    "reconcile": {
        "adopt": "Record charges that Stripe already has, so that they are not billed again.",
        "reconcile": "Compare the ledger with Stripe's lists of charges and refunds.",
        "recover": "Make one recovery pass now: find out what became of unknown operations.",
    },
    "serve": {
        "demo": "Replay three ways in which agents charge twice, without kb-mcp and with it.",
        "mcp": "Serve the tools over MCP on stdin and stdout, for one client.",
        "sandbox": "Run the sandbox alone: a stand-in for Stripe.",
        "up": "Serve the proxy and MCP to agents, and the admin API to operators.",
    },
    "settings_cmd": {
        "migrate": "Bring the store to the newest schema.",
        "settings": "Settings in the store, the same for all processes: ceilings, timeout, grace "
        "time.",
    },
}
_HOMES = {name: module for module, commands in _MODULES.items() for name in commands}
_HELP = {name: text for commands in _MODULES.values() for name, text in commands.items()}


class Commands(click.Group):
    """The top group: knows its commands by name, and turns known errors into a line and a hint."""

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is typed, imported, in place of what stands for it in the help.

        Raises: NoSuchCommand, which names those that are written nearly so.
        """
        name, known, rest = super().resolve_command(ctx, args)
        if name is not None:
            known = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return name, known, rest

    @override
    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **extra: Any
    ) -> click.Context:
        """Begin a command line, unless another distribution claims this package."""
        collect_seldom()
        claimed, typed = other_distribution(), tuple(args)
        if claimed is not None:
            raise WrongUse(*claimed)
        with told_in_our_way():
            context = super().make_context(info_name, args, *more, **extra)
        context.meta[TYPED] = typed
        return context

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, telling what goes wrong in our way."""
        with told_in_our_way():
            return super().invoke(ctx)


def group(name: str, example: str) -> click.Group:
    """Return the group `name`, whose help ends with an example: `kb-mcp`, `name` and `example`."""
    return click.Group(name, help=f"{_HELP[name]}\n\nExample: kb-mcp {name} {example}")


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="kb-mcp-billing", message="%(package)s %(version)s")
def main() -> None:
    """Charge through Stripe exactly once, within caps, from AI agents.

    Example: kb-mcp up
    """


for _name, _text in _HELP.items():
    main.add_command(click.Command(_name, short_help=_text))
