"""The three failure modes, with charges and with refunds, and what has to come of each.

Floor: the demo, above machines. How many were made is asked of the sandbox. Source of the events:
docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html; every value is text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from kb_mcp.demo.machines import DemoError, Machine, Outcome, SandboxClient


@dataclass(frozen=True, slots=True)
class Bill:
    """What an agent is asked to charge; the amount in minor units of USD."""

    customer_id: str
    billing_period: str
    amount_cents: int = 2900


Arguments: TypeAlias = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Task:
    """What an agent is to do once: make a `noun` (charge, refund) with `arguments`.

    `among` is how the sandbox's list of them is narrowed to this one.
    """

    noun: str
    arguments: Arguments
    among: dict[str, str]

    @property
    def act(self) -> str:
        """What was done, in one word: charged or refunded."""
        return _ACTS[self.noun]

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


def charging(bill: Bill) -> Task:
    """Return the task of charging `bill`."""
    arguments: Arguments = {
        "customer_id": bill.customer_id,
        "amount_cents": bill.amount_cents,
        "billing_period": bill.billing_period,
    }
    return Task("charge", arguments, {"customer": bill.customer_id})


def charge_event(bill: Bill, *, session: str, said: str) -> dict[str, Any]:
    """Return the event in which an agent asks for `bill` after the user `said` something."""
    return charging(bill).event(session, said)


_ACTS: Final = {"charge": "charged", "refund": "refunded"}
WANTED: Final = 1
_LATER_SECONDS: Final = 40 * 60
_GIVEN_BACK_CENTS: Final = 900


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that runs: as the agent it belongs to, and once more as the supervisor's.

    `tag` makes its customers its own; `tries` is how often it sends one charge before it gives
    up, so how many answers must get lost for the runtime to see none.
    """

    label: str
    tag: str
    agent: Machine
    supervisor: Machine
    tries: int = 1
    governed: bool = False


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
    def verdict(self) -> str:
        """What to make of it, in a few words."""
        times = {0: f"not {self.act}", 1: f"{self.act} once", 2: f"{self.act} twice"}
        made = times.get(self.made, f"{self.act} {self.made} times")
        return f"{made}: {self.note}" if self.governed else made


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


def play_refused_supervisor(sandbox: SandboxClient, handler: Handler, auditor: Machine) -> Row:
    """The same, but the supervisor's key may only read charges: it has to be told 403."""
    task = _task("charge", sandbox, handler, "Audit")
    refused = play_supervisor(sandbox, replace(handler, supervisor=auditor), task)
    return Row(
        MODES["charge"][-1][0],
        f"{handler.label}, audit key",
        handler.governed,
        len(sandbox.made(task.noun, task.among)),
        (refused.status, refused.body.get("code")) == (403, "vault_key_not_authorized"),
        f"supervisor told {refused.status} {refused.body.get('code')}",
    )


Play: TypeAlias = Callable[[SandboxClient, Handler, Task], Outcome]
MODES: Final[dict[str, tuple[tuple[str, str, Play], ...]]] = {
    "charge": (
        ("1 runtime retry", "Retry", play_runtime_retry),
        ("2 session replay", "Replay", play_session_replay),
        ("3 supervisor beside collaborator", "Beside", play_supervisor),
    ),
    "refund": (
        ("4 refund, runtime retry", "Retry", play_runtime_retry),
        ("5 refund, session replay", "Replay", play_session_replay),
        ("6 refund, supervisor beside collaborator", "Beside", play_supervisor),
    ),
}
"""What is made -> the modes in which it goes wrong: heading, part of the customer's name, play."""


def play_mode(mode: str, name: str, play: Play, noun: str, on: SandboxClient, by: Handler) -> Row:
    """Play one mode with one handler, and count what was made. Raises: DemoError."""
    task = _task(noun, on, by, name)
    again = play(on, by, task)
    made = on.made(task.noun, task.among)
    told = (again.status, again.body.get("status"), again.body.get(f"already_{task.act}"))
    known = told == (200, "succeeded", True) and again.body.get(f"{noun}_id") in made
    note = f"the second call got the first {noun}" if known else f"answered {again.said}"
    return Row(mode, by.label, by.governed, len(made), known, note, task.act)


def _task(noun: str, sandbox: SandboxClient, handler: Handler, name: str) -> Task:
    """Return what to charge, or charge it, and return what to refund of it. Raises: DemoError."""
    of = "Refund" if noun == "refund" else ""
    bill = charging(Bill(f"cus_Demo{of}{name}{handler.tag}", sandbox.month()))
    if noun == "charge":
        return bill
    made = handler.agent.invoke(bill.event("session-0", "Charge it."))
    charge = made.body.get("charge_id")
    if not isinstance(charge, str):
        raise DemoError(f"{handler.label}: there is nothing to refund; it said {made.said}")
    arguments: Arguments = {"charge_id": charge, "amount_cents": _GIVEN_BACK_CENTS}
    return Task(noun, arguments, {"charge": charge})
