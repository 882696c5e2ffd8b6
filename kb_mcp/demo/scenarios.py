"""The three failure modes, with charges and with refunds, played by processes and told in tables.

Floor: the demo, above machines. How many were made is asked of the sandbox. Source of the events:
docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html; every value is text.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

from kb_mcp.demo import machines
from kb_mcp.demo.machines import STRIPE_KEY, DemoError, Machine, Outcome, SandboxClient

WANTED: Final = 1
_LATER_SECONDS: Final = 40 * 60
_GIVEN_BACK_CENTS: Final = 900


@dataclass(frozen=True, slots=True)
class Task:
    """What an agent is to do once: make a `noun` (charge, refund) with `arguments`.

    `among` is how the sandbox's list of them is narrowed to this one.
    """

    noun: str
    arguments: dict[str, str | int]
    among: dict[str, str]

    def event(self, session: str, said: str, agent: str = "billing") -> dict[str, Any]:
        """Return the event in which `agent` asks for it after the user `said` something."""
        properties = [
            {
                "name": name,
                "type": "integer" if isinstance(value, int) else "string",
                "value": str(value),
            }
            for name, value in self.arguments.items()
        ]
        return {
            "messageVersion": "1.0",
            "agent": {"name": agent, "id": agent.upper(), "alias": "DEMO", "version": "1"},
            "inputText": said,
            "sessionId": session,
            "actionGroup": "billing",
            "apiPath": f"/{self.noun}",
            "httpMethod": "POST",
            "requestBody": {"content": {"application/json": {"properties": properties}}},
            "sessionAttributes": {},
            "promptSessionAttributes": {},
        }


def charging(customer_id: str, billing_period: str, amount_cents: int = 2900) -> Task:
    """Return the task of charging one bill; the amount in minor units of USD."""
    arguments: dict[str, str | int] = {
        "customer_id": customer_id,
        "amount_cents": amount_cents,
        "billing_period": billing_period,
    }
    return Task("charge", arguments, {"customer": customer_id})


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that runs: as the agent it belongs to, and once more as the supervisor's.

    `tag` makes its customers its own; `tries` is how often it sends one charge before it gives
    up, so how many answers must get lost for the runtime to see none. `governed` is whether kb-mcp
    stands before it, `refused` whether its supervisor's key may only read charges.
    """

    label: str
    tag: str
    agent: Machine
    supervisor: Machine
    tries: int = 1
    governed: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `answered` is whether the agents were told what they have to be."""

    mode: str
    handler: str
    governed: bool
    made: int
    answered: bool
    note: str
    act: str = "charged"

    @property
    def passes(self) -> bool:
        """Governed: as wanted, in charges and in words. Otherwise: the failure was shown."""
        if self.governed:
            return self.made == WANTED and self.answered
        return self.made != WANTED

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells: mode, handler, how many were wanted, how many made, and what to make of it."""
        times = {0: f"not {self.act}", 1: f"{self.act} once", 2: f"{self.act} twice"}
        verdict = times.get(self.made, f"{self.act} {self.made} times")
        verdict += f": {self.note}" if self.governed else ""
        return (self.mode, self.handler, str(WANTED), str(self.made), verdict)


def play_runtime_retry(sandbox: SandboxClient, handler: Handler, task: Task) -> Outcome:
    """It is made, the response is lost, and the runtime calls the handler again."""
    event = task.event("session-1", "Please do it.")
    sandbox.lose_answers(handler.tries, f"POST /v1/{task.noun}s")
    lost = handler.agent.invoke(event)
    if sandbox.answers_still_to_lose():
        raise DemoError(f"{handler.label}: no answer got lost; it said {lost.said}")
    return handler.agent.invoke(event)


def play_session_replay(sandbox: SandboxClient, handler: Handler, task: Task) -> Outcome:
    """A later turn says "sort this out", and the model asks for it again."""
    handler.agent.invoke(task.event("session-2", "Please do it."))
    sandbox.advance(_LATER_SECONDS)
    return handler.agent.invoke(task.event("session-2", "And what became of it? Sort this out."))


def play_supervisor(_sandbox: SandboxClient, handler: Handler, task: Task) -> Outcome:
    """The collaborator has done it; its supervisor, with a key of its own, does it too."""
    handler.agent.invoke(task.event("session-3", "Please do it."))
    return handler.supervisor.invoke(task.event("session-4", "Please do it.", "supervisor"))


Play: TypeAlias = Callable[[SandboxClient, Handler, Task], Outcome]
ACTS: Final = {"charge": "charged", "refund": "refunded"}
MODES: Final[tuple[tuple[str, str, Play], ...]] = (
    ("runtime retry", "Retry", play_runtime_retry),
    ("session replay", "Replay", play_session_replay),
    ("supervisor beside collaborator", "Beside", play_supervisor),
)
"""How charges and refunds go wrong: the mode, a part of the customer's name, and its play."""


def play_mode(
    heading: str, name: str, play: Play, noun: str, sandbox: SandboxClient, handler: Handler
) -> Row:
    """Play one mode with one handler, and count what was made. Raises: DemoError."""
    task = _task(noun, sandbox, handler, name)
    again = play(sandbox, handler, task)
    made, act, body = sandbox.made(noun, task.among), ACTS[noun], again.body
    if handler.refused:
        known = (again.status, body.get("code")) == (403, "vault_key_not_authorized")
        note = f"supervisor told {again.status} {body.get('code')}"
    else:
        told = (again.status, body.get("status"), body.get(f"already_{act}"))
        known = told == (200, "succeeded", True) and body.get(f"{noun}_id") in made
        note = f"the second call got the first {noun}" if known else f"answered {again.said}"
    return Row(heading, handler.label, handler.governed, len(made), known, note, act)


def _task(noun: str, sandbox: SandboxClient, handler: Handler, name: str) -> Task:
    """Return what to charge, or charge it, and return what to refund of it. Raises: DemoError."""
    of = "Refund" if noun == "refund" else ""
    bill = charging(f"cus_Demo{of}{name}{handler.tag}", sandbox.month())
    if noun == "charge":
        return bill
    made = handler.agent.invoke(bill.event("session-0", "Charge it."))
    charge = made.body.get("charge_id")
    if not isinstance(charge, str):
        raise DemoError(f"{handler.label}: there is nothing to refund; it said {made.said}")
    return Task(noun, {"charge_id": charge, "amount_cents": _GIVEN_BACK_CENTS}, {"charge": charge})


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
        rows += [
            play_mode(heading, name, play, noun, sandbox, handler)
            for handler in handlers
            # Whether it may charge is asked where a supervisor charges, too.
            if not handler.refused or number == len(MODES)
        ]
    return rows


def _start(stack: ExitStack) -> tuple[SandboxClient, tuple[Handler, ...]]:
    """Start everything, to be ended with `stack`; return a line to the sandbox, and the handlers.

    Raises: DemoError.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kb-mcp-demo-")))

    def start(name: str, arguments: list[str], environ: Mapping[str, str]) -> Machine:
        return stack.enter_context(machines.running(arguments, environ, folder / f"{name}.log"))

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
    governed = Handler("kb-mcp", "Governed", at["agent"], at["supervisor"], governed=True)
    return stack.enter_context(closing(SandboxClient(sandbox))), (
        # The SDK's own tries of one charge: its module retries twice, its StripeClient does not.
        Handler("sample, no key", "NoKey", at["no-key"], at["no-key-2"], tries=3),
        Handler("sample, key in params", "InParams", at["in-params"], at["in-params-2"]),
        governed,
        replace(
            governed, label="kb-mcp, audit key", tag="Audit", supervisor=at["auditor"], refused=True
        ),
    )


def _functions(
    sandbox: str, proxy: str, keys: Mapping[str, str]
) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the handler and the environment of each Lambda function; `-2` is the supervisor's."""
    second = "rk_test_supervisor"
    samples = {
        "no-key": ("without_key", STRIPE_KEY, sandbox),
        "no-key-2": ("without_key", second, sandbox),
        "in-params": ("with_key_in_params", STRIPE_KEY, sandbox),
        "in-params-2": ("with_key_in_params", second, sandbox),
        # The published handler with nothing changed but key and address: the wall holds for it too.
        "auditor": ("without_key", keys["auditor"], f"{proxy}/stripe"),
    }
    functions = {
        name: (f"kb_mcp.demo.naive:{function}", {"STRIPE_SECRET_KEY": key, "STRIPE_API_BASE": at})
        for name, (function, key, at) in samples.items()
    }
    for who in ("agent", "supervisor"):
        environ = {
            "KEYBRAKE_VAULT_KEY_BILLING": keys[who],
            "KEYBRAKE_VAULT_KEY_REFUNDS": keys[f"{who}-refunds"],
            "KEYBRAKE_PROXY_URL": proxy,
        }
        functions[who] = ("kb_mcp.lambda_entry:handler", environ)
    return functions


def _issue_keys(settings: Mapping[str, str], folder: Path) -> dict[str, str]:
    def issue(label: str) -> str:
        arguments = ["keys", "issue", "--role", *_KEYS[label], "--label", label, "--json"]
        return str(machines.command(arguments, settings, folder)["token"])

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
