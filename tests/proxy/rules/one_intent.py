"""A room with one PaymentIntent in it, and the steps that go on with it."""

from __future__ import annotations

from urllib.parse import urlencode

from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.ledger.records import LineageId, Operation, OperationId
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.rules.command import Command, Decision
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.rules.follow_ups import as_step, step_fingerprint
from kb_mcp.proxy.rules.outcomes.resolve import Present
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import Made, Proof, prove_object
from kb_mcp.proxy.stripe.forms import parse_form
from kb_mcp.proxy.stripe.interpret import Reading, read_request
from tests.proxy.rules.one_key import FORM_TYPE, OneKey

CREATE = "POST /v1/payment_intents"
FIRST = OperationId("op_1")
POLICY = Policy.model_validate(
    {"role": "collector", "allow": (CREATE,), "caps": CapRules(daily={"usd": 9000})}
)


def shown(status: str, amount: int = 2900, **fields: object) -> Made:
    body = {"id": "pi_1", "object": "payment_intent", "status": status, "amount": amount, **fields}
    made = prove_object(body, ENDPOINTS[CREATE])
    assert made is not None
    return made


class OneIntent(OneKey):
    """A room with one authorised intent, `pi_1`, of 29.00."""

    def __init__(self, status: str = "requires_capture") -> None:
        super().__init__(policy=POLICY)
        self.make(status)

    def make(self, status: str) -> None:
        command = self.intend(period="2026-11")
        reading = replace(command.reading, route=ENDPOINTS[CREATE], path="/v1/payment_intents")
        go = decide(self.snapshot, replace(command, reading=reading))
        self.snapshot.apply(go.changes)
        self.end(go, shown(status))

    @property
    def operation(self) -> Operation:
        return self.snapshot.operations[FIRST]

    def held(self) -> int:
        """Return what every window of the operation holds in reserve: they agree."""
        places = windows_of(self.operation).money()
        (held,) = {self.snapshot.window(place).reserved for place in places}
        assert held == (0 if self.operation.final else self.operation.held)
        return held

    def step(self, verb: str, lineage: str = "one", **form: object) -> Decision:
        """Decide a step on the command, and let the snapshot see it."""
        decision = decide(self.snapshot, self.meant(verb, lineage, **form))
        self.snapshot.apply(decision.changes)
        return decision

    def meant(self, verb: str, lineage: str = "one", **form: object) -> Command:
        """Return what a step on the command means."""
        path = f"/v1/payment_intents/pi_1/{verb}".rstrip("/")
        parsed = parse_form(urlencode(form).encode(), FORM_TYPE, b"", "POST")
        reading = read_request("POST", path, parsed, None)  # type: ignore[arg-type] # a refusal fails below
        assert isinstance(reading, Reading), reading
        made = self.operation
        step = as_step(reading, made)
        assert isinstance(step, Reading), step
        assert step.money is not None
        return replace(
            self.intend(),
            reading=step,
            money=step.money,
            lineage_id=LineageId(lineage),
            name=made.name,
            named_by=made.named_by,
            upstream_name=made.upstream_name,
            fingerprint=step_fingerprint(step, made),
            stripe_version="2026-10-28.endive",
            continues=made,
        )

    def after(self, decision: Decision, proof: Proof) -> tuple[str, int]:
        """Return the state and what is held once the step was answered."""
        operation = self.end(decision, proof)
        return operation.state.value, self.held()

    def look(self, proof: Made) -> tuple[str, int]:
        """Return the state and what is held once recovery has read the command."""
        self.read(FIRST, Present(self.operation.attempt, proof))
        return self.operation.state.value, self.held()
