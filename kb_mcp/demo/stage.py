"""Everything that runs during the demo, sandbox, proxy and handlers, and the table at the end.

Floor: the demo, above scenarios. All of it is ended, and its folder removed, however it ends.
"""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from kb_mcp.demo.machines import STRIPE_KEY, Machine, SandboxClient, command, running
from kb_mcp.demo.scenarios import MODES, WANTED, Handler, Row, play_mode, play_refused_supervisor

if TYPE_CHECKING:
    from rich.console import Console


# The SDK's own tries of one charge: its module retries twice, its StripeClient does not.
_MODULE_TRIES: Final = 3
_CLIENT_TRIES: Final = 1
_KEYS: Final = {
    "agent": "billing",
    "supervisor": "billing",
    "agent-refunds": "refunds",
    "supervisor-refunds": "refunds",
    "auditor": "audit",
}
_CAPS: Final = {"billing": "--daily-cap", "refunds": "--refund-daily-cap"}


@dataclass(frozen=True, slots=True)
class Stage:
    """What is running: `naive` and `governed` handlers, and a supervisor with an audit key."""

    sandbox: SandboxClient
    naive: tuple[Handler, ...]
    governed: Handler
    auditor: Machine

    def play(self, say: Callable[[str], object]) -> list[Row]:
        """Play every mode for every handler, the naive ones first. Raises: DemoError."""
        rows = []
        for noun, modes in MODES.items():
            for mode in modes:
                say(f"Playing {mode[0]}.")
                handlers = (*self.naive, self.governed)
                rows += [play_mode(*mode, noun, self.sandbox, handler) for handler in handlers]
            if noun == "charge":
                rows.append(play_refused_supervisor(self.sandbox, self.governed, self.auditor))
        return rows


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Start everything, and end it again. Raises: DemoError."""
    with ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-mcp-demo-"))
        yield _build(stack, Path(name))


def _build(stack: ExitStack, folder: Path) -> Stage:
    def start(name: str, arguments: list[str], environ: Mapping[str, str]) -> Machine:
        return stack.enter_context(running(arguments, environ, folder / f"{name}.log"))

    def start_handler(name: str, handler: str, environ: Mapping[str, str]) -> Machine:
        return start(name, ["kb_mcp.demo.lambda_runtime", handler], environ)

    def start_naive(label: str, function: str, tag: str, tries: int) -> Handler:
        agents = [
            start_handler(f"{function}-{who}", f"kb_mcp.demo.naive:{function}", environ)
            for who, environ in (
                ("agent", _at_stripe(STRIPE_KEY, sandbox)),
                ("supervisor", _at_stripe("rk_test_supervisor", sandbox)),
            )
        ]
        return Handler(label, tag, agents[0], agents[1], tries)

    sandbox = start("sandbox", ["kb_mcp", "sandbox", "--port", "0"], _home(folder)).address(
        "Sandbox listening on"
    )
    settings = _settings(folder, sandbox)
    up = ["kb_mcp", "up", "--port", "0", "--admin-port", "0"]
    proxy = start("up", up, settings).address("Agents:")
    naive = (
        start_naive("sample, no key", "without_key", "NoKey", _MODULE_TRIES),
        start_naive("sample, key in params", "with_key_in_params", "InParams", _CLIENT_TRIES),
    )
    keys = _issue_keys(settings, folder)
    entry = "kb_mcp.lambda_entry:handler"
    governed = Handler(
        "kb-mcp",
        "Governed",
        start_handler("governed-agent", entry, _at_proxy(keys, "agent", proxy)),
        start_handler("governed-supervisor", entry, _at_proxy(keys, "supervisor", proxy)),
        governed=True,
    )
    # The published handler with nothing changed but key and address: the wall holds for it too.
    auditor = start_handler(
        "auditor", "kb_mcp.demo.naive:without_key", _at_stripe(keys["auditor"], f"{proxy}/stripe")
    )
    client = stack.enter_context(closing(SandboxClient(sandbox)))
    return Stage(client, naive, governed, auditor)


def _issue_keys(settings: Mapping[str, str], folder: Path) -> dict[str, str]:
    def issue(item: tuple[str, str]) -> tuple[str, str]:
        label, role = item
        cap = [_CAPS[role], "1000.00usd"] if role in _CAPS else []
        arguments = ["keys", "issue", "--role", role, *cap, "--label", label, "--json"]
        return label, command(arguments, settings, folder)["token"]

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(issue, _KEYS.items()))


def _home(folder: Path) -> dict[str, str]:
    return {"HOME": str(folder)}


def _settings(folder: Path, sandbox: str) -> dict[str, str]:
    return {
        **_home(folder),
        "KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db",
        "KEYBRAKE_STRIPE_KEY": STRIPE_KEY,
        "KEYBRAKE_STRIPE_API_BASE": sandbox,
    }


def _at_stripe(key: str, address: str) -> dict[str, str]:
    return {"STRIPE_SECRET_KEY": key, "STRIPE_API_BASE": address}


def _at_proxy(keys: Mapping[str, str], who: str, proxy: str) -> dict[str, str]:
    return {
        "KEYBRAKE_VAULT_KEY_BILLING": keys[who],
        "KEYBRAKE_VAULT_KEY_REFUNDS": keys[f"{who}-refunds"],
        "KEYBRAKE_PROXY_URL": proxy,
    }


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, where it would otherwise leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_COUNTED: Final = {"charged": "charges", "refunded": "refunds"}


def print_verdict(console: Console, rows: Sequence[Row]) -> int:
    """Print the table and what it shows. Returns the exit code."""
    for act in _COUNTED:
        of_act = [row for row in rows if row.act == act]
        if of_act:
            console.print()
            (_draw if console.is_terminal else _write)(console, of_act)
    failed = [row for row in rows if not row.passes]
    for row in failed:
        wanted = f"{row.act} once" if row.governed else "a failure to show"
        say_on(console, f"NOT AS EXPECTED: {row.mode}, {row.handler}: wanted {wanted}.")
    say_on(console, "Charges and refunds were counted in the sandbox's own lists, over HTTP.")
    return 1 if failed else 0


def _cells(row: Row) -> tuple[str, ...]:
    return (row.mode, row.handler, str(WANTED), str(row.made), row.verdict)


def _headings(rows: Sequence[Row]) -> tuple[str, ...]:
    counted = _COUNTED[rows[0].act]
    return ("failure mode", "handler", f"{counted} wanted", f"{counted} made", "verdict")


def _draw(console: Console, rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table()
    for heading in _headings(rows):
        counts = heading.endswith((" wanted", " made"))
        table.add_column(
            heading.replace(" ", "\n") if counts else heading,
            justify="right" if counts else "left",
            overflow="fold",
        )
    for before, row in zip((None, *rows), rows, strict=False):
        mode, *cells = _cells(row)
        if before is None or before.mode != row.mode:
            table.add_section()
        else:
            mode = ""
        table.add_row(mode, *cells, style="green" if row.made == WANTED else "red")
    console.print(table)


def _write(console: Console, rows: Sequence[Row]) -> None:
    lines = [_headings(rows), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say_on(console, "  ".join(padded).rstrip())


def say_on(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
