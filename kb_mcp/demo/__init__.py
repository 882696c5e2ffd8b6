"""The demo: three ways in which agents charge twice, without kb-mcp and with it.

Floor: a public face, beside the Lambda and Converse faces. It imports nothing of the product: it
starts the commands and talks HTTP, as a user would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_demo"]


def run_demo(console: Console) -> int:
    """Replay the failure modes and print a table.

    Returns the exit code: 0 when every governed row charged what was wanted and no naive row did.
    """
    from kb_mcp.demo.stage import run_stage  # the handlers of the demo import this package, too

    return run_stage(console)
