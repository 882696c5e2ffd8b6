"""Everything that runs during the demo, sandbox, proxy and handlers, and the table at the end.

Floor: the demo, above scenarios. All of it is ended, and its folder removed, however it ends.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from kb_mcp.demo.machines import STRIPE_KEY, DemoError, Machine, SandboxClient, command, running
from kb_mcp.demo.scenarios import (
    ACTS,
    MODES,
    WANTED,
    Handler,
    Row,
    play_mode,
    play_refused_supervisor,
)

# Who holds a key -> its role, and the cap that it needs.
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "agent": ("billing", "--daily-cap", "1000.00usd"),
    "supervisor": ("billing", "--daily-cap", "1000.00usd"),
    "agent-refunds": ("refunds", "--refund-daily-cap", "1000.00usd"),
    "supervisor-refunds": ("refunds", "--refund-daily-cap", "1000.00usd"),
    "auditor": ("audit",),
}


def run_demo(console: Console) -> int:
    """Replay the failure modes and print a table.

    Returns the exit code: 0 when every governed row charged what was wanted and no naive row did.
    """
    # SIGTERM unwinds the stack, where it would otherwise leave processes behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    say_on(console, "Starting a sandbox, a proxy in front of it, and the agents' handlers.")
    try:
        with ExitStack() as stack:
            rows = _play(console, *_start(stack))
    except DemoError as error:
        say_on(console, f"The demo could not run: {error}")
        return 1
    return print_verdict(console, rows)


def _play(console: Console, sandbox: SandboxClient, handlers: Sequence[Handler]) -> list[Row]:
    """Play every mode for every handler, the naive ones first. Raises: DemoError."""
    rows = []
    for number, (noun, (mode, name, play)) in enumerate(product(ACTS, MODES), 1):
        heading = f"{number} {mode}" if noun == "charge" else f"{number} {noun}, {mode}"
        say_on(console, f"Playing {heading}.")
        rows += [play_mode(heading, name, play, noun, sandbox, handler) for handler in handlers]
        if number == len(MODES):
            rows += [
                play_refused_supervisor(heading, sandbox, each, each.auditor)
                for each in handlers
                if each.auditor is not None
            ]
    return rows


def _start(stack: ExitStack) -> tuple[SandboxClient, tuple[Handler, ...]]:
    """Start everything, to be ended with `stack`; return a line to the sandbox, and the handlers.

    Raises: DemoError.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-mcp-demo-")))

    def start(name: str, arguments: list[str], environ: Mapping[str, str]) -> Machine:
        return stack.enter_context(running(arguments, environ, folder / f"{name}.log"))

    home = {"HOME": str(folder)}
    alone = start("sandbox", ["kb_mcp", "sandbox", "--port", "0"], home)
    sandbox = alone.address("Sandbox listening on")
    settings = home | {
        "KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
        "KEYBRAKE_STRIPE_KEY": STRIPE_KEY,
        "KEYBRAKE_STRIPE_API_BASE": sandbox,
    }
    up = ["kb_mcp", "up", "--port", "0", "--admin-port", "0"]
    proxy = start("up", up, settings).address("Agents:")
    functions = _functions(sandbox, proxy, _issue_keys(settings, folder))
    at = {
        name: start(name, ["kb_mcp.demo.lambda_runtime", handler], environ)
        for name, (handler, environ) in functions.items()
    }
    return stack.enter_context(closing(SandboxClient(sandbox))), (
        # The SDK's own tries of one charge: its module retries twice, its StripeClient does not.
        Handler("sample, no key", "NoKey", at["no-key"], at["no-key-2"], tries=3),
        Handler("sample, key in params", "InParams", at["in-params"], at["in-params-2"]),
        Handler("kb-mcp", "Governed", at["agent"], at["supervisor"], auditor=at["auditor"]),
    )


def _functions(
    sandbox: str, proxy: str, keys: Mapping[str, str]
) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the handler and the environment of each Lambda function; `-2` is the supervisor's."""

    def published(function: str, key: str, address: str) -> tuple[str, dict[str, str]]:
        environ = {"STRIPE_SECRET_KEY": key, "STRIPE_API_BASE": address}
        return f"kb_mcp.demo.naive:{function}", environ

    def governed(who: str) -> tuple[str, dict[str, str]]:
        environ = {
            "KEYBRAKE_VAULT_KEY_BILLING": keys[who],
            "KEYBRAKE_VAULT_KEY_REFUNDS": keys[f"{who}-refunds"],
            "KEYBRAKE_PROXY_URL": proxy,
        }
        return "kb_mcp.lambda_entry:handler", environ

    return {
        "no-key": published("without_key", STRIPE_KEY, sandbox),
        "no-key-2": published("without_key", "rk_test_supervisor", sandbox),
        "in-params": published("with_key_in_params", STRIPE_KEY, sandbox),
        "in-params-2": published("with_key_in_params", "rk_test_supervisor", sandbox),
        "agent": governed("agent"),
        "supervisor": governed("supervisor"),
        # The published handler with nothing changed but key and address: the wall holds for it too.
        "auditor": published("without_key", keys["auditor"], f"{proxy}/stripe"),
    }


def _issue_keys(settings: Mapping[str, str], folder: Path) -> dict[str, str]:
    def issue(label: str) -> str:
        arguments = ["keys", "issue", "--role", *_KEYS[label], "--label", label, "--json"]
        return str(command(arguments, settings, folder)["token"])

    with ThreadPoolExecutor() as pool:
        return dict(zip(_KEYS, pool.map(issue, _KEYS), strict=True))


def print_verdict(console: Console, rows: Sequence[Row]) -> int:
    """Print the tables and what they show. Returns the exit code."""
    for noun, act in ACTS.items():
        if of_act := [row for row in rows if row.act == act]:
            headings = ("failure mode", "handler", f"{noun}s wanted", f"{noun}s made", "verdict")
            console.print()
            (_draw if console.is_terminal else _write)(console, headings, of_act)
    failed = [row for row in rows if not row.passes]
    for row in failed:
        wanted = f"{row.act} once" if row.governed else "a failure to show"
        say_on(console, f"NOT AS EXPECTED: {row.mode}, {row.handler}: wanted {wanted}.")
    say_on(console, "Charges and refunds were counted in the sandbox's own lists, over HTTP.")
    return 1 if failed else 0


def _draw(console: Console, headings: Sequence[str], rows: Sequence[Row]) -> None:
    table = Table()
    for heading in headings:
        if heading.endswith((" wanted", " made")):
            table.add_column(heading.replace(" ", "\n"), justify="right", overflow="fold")
        else:
            table.add_column(heading, overflow="fold")
    shown = ""
    for row in rows:
        mode, *cells = row.cells
        if mode != shown:
            table.add_section()
        style = "green" if row.made == WANTED else "red"
        table.add_row("" if mode == shown else mode, *cells, style=style)
        shown = mode
    console.print(table)


def _write(console: Console, headings: Sequence[str], rows: Sequence[Row]) -> None:
    lines = [headings, *(row.cells for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say_on(console, "  ".join(padded).rstrip())


def say_on(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
