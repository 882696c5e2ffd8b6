"""The three failure modes, with charges and with refunds, and what has to come of each.

Floor: the demo, above machines. How many were made is asked of the sandbox. Source of the events:
docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html; every value is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kb_mcp.demo.machines import DemoError, Machine, Outcome, SandboxClient


@dataclass(frozen=True, slots=True)
class Bill:
    """What an agent is asked to charge; the amount in minor units of USD."""

    customer_id: str
    billing_period: str
    amount_cents: int = 2900


def charge_event(bill: Bill, *, session: str, said: str, agent: str = "billing") -> dict[str, Any]:
    """Return the event in which `agent` asks for `bill` after the user `said` something."""
    properties = [
        {"name": "customer_id", "type": "string", "value": bill.customer_id},
        {"name": "amount_cents", "type": "integer", "value": str(bill.amount_cents)},
        {"name": "billing_period", "type": "string", "value": bill.billing_period},
    ]
    return _event("/charge", properties, session, said, agent)


def refund_event(
    charge_id: str, amount_cents: int, *, session: str, said: str, agent: str = "billing"
) -> dict[str, Any]:
    """Return the event in which `agent` asks to give a part of a charge back."""
    properties = [
        {"name": "charge_id", "type": "string", "value": charge_id},
        {"name": "amount_cents", "type": "integer", "value": str(amount_cents)},
    ]
    return _event("/refund", properties, session, said, agent)


def _event(
    path: str, properties: list[dict[str, str]], session: str, said: str, agent: str
) -> dict[str, Any]:
    return {
        "messageVersion": "1.0",
        "agent": {"name": agent, "id": agent.upper(), "alias": "DEMO", "version": "1"},
        "inputText": said,
        "sessionId": session,
        "actionGroup": "billing",
        "apiPath": path,
        "httpMethod": "POST",
        "requestBody": {"content": {"application/json": {"properties": properties}}},
        "sessionAttributes": {},
        "promptSessionAttributes": {},
    }


RUNTIME_RETRY: Final = "1 runtime retry"
SESSION_REPLAY: Final = "2 session replay"
SUPERVISOR: Final = "3 supervisor beside collaborator"
REFUND_RETRY: Final = "4 refund, runtime retry"
REFUND_REPLAY: Final = "5 refund, session replay"
REFUND_SUPERVISOR: Final = "6 refund, supervisor beside collaborator"
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


def play_runtime_retry(sandbox: SandboxClient, handler: Handler) -> Row:
    """The charge succeeds, its response is lost, and the runtime calls the handler again."""
    bill = Bill(f"cus_DemoRetry{handler.tag}", sandbox.month())
    event = charge_event(bill, session="session-1", said=f"Charge {bill.customer_id}.")
    sandbox.lose_answers(handler.tries)
    lost = handler.agent.invoke(event)
    if sandbox.answers_still_to_lose():
        raise DemoError(f"{handler.label}: no answer got lost; it said {lost.said}")
    again = handler.agent.invoke(event)
    return _row(RUNTIME_RETRY, handler, sandbox.charges(bill.customer_id), again)


def play_session_replay(sandbox: SandboxClient, handler: Handler) -> Row:
    """A later turn says "sort this out", and the model asks for the charge again."""
    bill = Bill(f"cus_DemoReplay{handler.tag}", sandbox.month())
    first = charge_event(bill, session="session-2", said=f"Charge {bill.customer_id}.")
    later = charge_event(bill, session="session-2", said="That bill again? Sort this out.")
    handler.agent.invoke(first)
    sandbox.advance(_LATER_SECONDS)
    again = handler.agent.invoke(later)
    return _row(SESSION_REPLAY, handler, sandbox.charges(bill.customer_id), again)


def play_supervisor(sandbox: SandboxClient, handler: Handler) -> Row:
    """The collaborator has charged; its supervisor, with a key of its own, charges too."""
    bill = Bill(f"cus_DemoBeside{handler.tag}", sandbox.month())
    said = f"Charge {bill.customer_id}."
    handler.agent.invoke(charge_event(bill, session="session-3", said=said))
    beside = charge_event(bill, session="session-4", said=said, agent="supervisor")
    again = handler.supervisor.invoke(beside)
    return _row(SUPERVISOR, handler, sandbox.charges(bill.customer_id), again)


def play_refused_supervisor(sandbox: SandboxClient, handler: Handler, auditor: Machine) -> Row:
    """The same, but the supervisor's key may only read charges: it has to be told 403."""
    bill = Bill(f"cus_DemoAudit{handler.tag}", sandbox.month())
    said = f"Charge {bill.customer_id}."
    handler.agent.invoke(charge_event(bill, session="session-5", said=said))
    beside = charge_event(bill, session="session-6", said=said, agent="supervisor")
    refused = auditor.invoke(beside)
    return Row(
        SUPERVISOR,
        f"{handler.label}, audit key",
        handler.governed,
        len(sandbox.charges(bill.customer_id)),
        (refused.status, refused.body.get("code")) == (403, "vault_key_not_authorized"),
        f"supervisor told {refused.status} {refused.body.get('code')}",
    )


def play_refund_retry(sandbox: SandboxClient, handler: Handler) -> Row:
    """The refund succeeds, its response is lost, and the runtime calls the handler again."""
    charge_id = _charged(sandbox, handler, "RefundRetry")
    event = refund_event(charge_id, _GIVEN_BACK_CENTS, session="session-7", said="Refund 9 USD.")
    sandbox.lose_answers(handler.tries, "POST /v1/refunds")
    lost = handler.agent.invoke(event)
    if sandbox.answers_still_to_lose():
        raise DemoError(f"{handler.label}: no answer got lost; it said {lost.said}")
    again = handler.agent.invoke(event)
    return _refund_row(REFUND_RETRY, handler, sandbox.refunds(charge_id), again)


def play_refund_replay(sandbox: SandboxClient, handler: Handler) -> Row:
    """A later turn asks whether the money is on its way, and the model refunds again."""
    charge_id = _charged(sandbox, handler, "RefundReplay")
    asked = ("Refund 9 USD.", "Where is my refund? Sort this out.")
    first, later = (
        refund_event(charge_id, _GIVEN_BACK_CENTS, session="session-8", said=said) for said in asked
    )
    handler.agent.invoke(first)
    sandbox.advance(_LATER_SECONDS)
    again = handler.agent.invoke(later)
    return _refund_row(REFUND_REPLAY, handler, sandbox.refunds(charge_id), again)


def play_refund_supervisor(sandbox: SandboxClient, handler: Handler) -> Row:
    """The collaborator has refunded; its supervisor, with a key of its own, refunds too."""
    charge_id = _charged(sandbox, handler, "RefundBeside")
    ask, said = _GIVEN_BACK_CENTS, "Refund 9 USD."
    handler.agent.invoke(refund_event(charge_id, ask, session="session-9", said=said))
    beside = refund_event(charge_id, ask, session="session-10", said=said, agent="supervisor")
    again = handler.supervisor.invoke(beside)
    return _refund_row(REFUND_SUPERVISOR, handler, sandbox.refunds(charge_id), again)


def _charged(sandbox: SandboxClient, handler: Handler, name: str) -> str:
    bill = Bill(f"cus_Demo{name}{handler.tag}", sandbox.month())
    made = handler.agent.invoke(charge_event(bill, session="session-0", said="Charge it."))
    if made.charge_id is None:
        raise DemoError(f"{handler.label}: there is nothing to refund; it said {made.said}")
    return made.charge_id


def _refund_row(mode: str, handler: Handler, refunds: list[str], again: Outcome) -> Row:
    told = (again.status, again.body.get("status"), again.body.get("already_refunded"))
    known = told == (200, "succeeded", True) and again.refund_id in refunds
    note = "the second call got the first refund" if known else f"answered {again.said}"
    return Row(mode, handler.label, handler.governed, len(refunds), known, note, "refunded")


def _row(mode: str, handler: Handler, charges: list[str], again: Outcome) -> Row:
    told = (again.status, again.body.get("status"), again.body.get("already_charged"))
    known = told == (200, "succeeded", True) and again.charge_id in charges
    note = "the second call got the first charge" if known else f"answered {again.said}"
    return Row(mode, handler.label, handler.governed, len(charges), known, note)
