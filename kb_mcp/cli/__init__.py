"""The command line: `kb-mcp` and `python -m kb_mcp`.

Floor: above wiring. One small module a group of commands; what costs time to import is imported
by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import click

from kb_mcp.cli.approvals import approvals
from kb_mcp.cli.audit import audit
from kb_mcp.cli.doctor import doctor
from kb_mcp.cli.export import export
from kb_mcp.cli.failures import Commands
from kb_mcp.cli.keys import keys
from kb_mcp.cli.migrate import migrate
from kb_mcp.cli.operations import operations
from kb_mcp.cli.operators import operators
from kb_mcp.cli.reconcile import adopt, reconcile, recover
from kb_mcp.cli.serve import demo, mcp, sandbox, up
from kb_mcp.cli.settings_cmd import settings
from kb_mcp.cli.spend import spend

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kb-mcp", message="kb-mcp %(version)s")
def main() -> None:
    """Charge through Stripe exactly once, within caps, from AI agents.

    Example: kb-mcp up
    """


for _command in (
    *(up, mcp, sandbox, demo),
    *(keys, approvals, operators, settings),
    *(spend, operations, audit),
    *(recover, reconcile, adopt, doctor, migrate, export),
):
    main.add_command(_command)
