"""The demo: three ways in which agents charge twice, without kb-mcp and with it.

Floor: a public face, beside the Lambda and Converse faces. It imports nothing of the product: it
starts the commands and talks HTTP, as a user would.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_demo"]


def run_demo(console: Console) -> int:
    """Replay the failure modes and print a table.

    Returns the exit code: 0 when every governed row charged what was wanted and no naive row did.
    """
    from kb_mcp.demo.machines import DemoError
    from kb_mcp.demo.stage import open_stage, print_verdict, say_on

    say = partial(say_on, console)
    say("Starting a sandbox, a proxy in front of it, and the agents' handlers.")
    try:
        with open_stage() as stage:
            rows = stage.play(say)
    except DemoError as error:
        say(f"The demo could not run: {error}")
        return 1
    return print_verdict(console, rows)
