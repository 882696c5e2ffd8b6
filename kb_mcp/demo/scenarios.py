"""The three failure modes, with charges and with refunds, and what has to come of each.

Floor: the demo, above machines. How many were made is asked of the sandbox. Source of the events:
docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html; every value is text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from kb_mcp.demo.machines import DemoError, Machine, Outcome, SandboxClient

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
    up, so how many answers must get lost for the runtime to see none. A governed one has an
    `auditor`, too: a supervisor whose key may only read charges.
    """

    label: str
    tag: str
    agent: Machine
    supervisor: Machine
    tries: int = 1
    auditor: Machine | None = None

    @property
    def governed(self) -> bool:
        """Say whether kb-mcp stands before it."""
        return self.auditor is not None


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
    made, act = sandbox.made(noun, task.among), ACTS[noun]
    told = (again.status, again.body.get("status"), again.body.get(f"already_{act}"))
    known = told == (200, "succeeded", True) and again.body.get(f"{noun}_id") in made
    note = f"the second call got the first {noun}" if known else f"answered {again.said}"
    return Row(heading, handler.label, handler.governed, len(made), known, note, act)


def play_refused_supervisor(
    heading: str, sandbox: SandboxClient, handler: Handler, auditor: Machine
) -> Row:
    """The third mode, but the supervisor's key may only read charges: it has to be told 403."""
    task = _task("charge", sandbox, handler, "Audit")
    refused = play_supervisor(sandbox, replace(handler, supervisor=auditor), task)
    told = (refused.status, refused.body.get("code"))
    as_wanted = told == (403, "vault_key_not_authorized")
    made, note = len(sandbox.made(task.noun, task.among)), f"supervisor told {told[0]} {told[1]}"
    return Row(heading, f"{handler.label}, audit key", handler.governed, made, as_wanted, note)


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
