"""What must be true of money that is given back, worked out from Stripe's own objects.

Nothing of it is worked out with the product's functions: what a refund may be is seen from what
stood at Stripe when it was asked for, and from what was committed since.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from kb_mcp.proxy.ledger.records import Attempt, LineageId, Operation, OperationId, State
from tests.faults.account import Account, Charge, Refund

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from tests.faults.checks import Answer
    from tests.faults.stripe import SimulatedStripe

PATH = "/v1/refunds"
FREES_AFTER = 3
Name = tuple[str, str | None]  # a charge, and the reference of a refund of it


@dataclass(slots=True)
class RefundBooks:
    """What was asked for and approved. `reopened` counts how often an operator let one more pass.

    `asked_ms` says when each request came, by Stripe's time.
    """

    stripe: SimulatedStripe
    policies: Mapping[LineageId, Policy]
    lineage_of: dict[str, LineageId]
    asked_ms: dict[str, int] = field(default_factory=dict)
    approved: set[tuple[LineageId, str, int, str]] = field(default_factory=set)
    reopened: Counter[Name] = field(default_factory=Counter)
    key_of: dict[tuple[OperationId, int], str] = field(default_factory=dict)

    def note(
        self, snapshot: Snapshot, operations: Mapping[OperationId, Operation]
    ) -> Iterator[str]:
        """Take over what a transaction committed, and yield what it should not have let pass.

        `operations` are all that were ever committed, this transaction's among them.
        """
        dirty = snapshot.dirty
        self.key_of |= {each: snapshot.attempts[each].upstream_key for each in dirty.attempts}
        for approval_id in dirty.approvals:
            held = snapshot.approvals[approval_id]
            if held.gives_back and held.state in {"approved", "used"} and held.decided_by:
                self.approved.add((held.lineage_id, held.gives_back, held.amount, held.currency))
        for row in dirty.audit:
            if row.kind == "decision" and row.decision == "proceed":
                attempt = snapshot.attempts[OperationId(row.operation_id or ""), row.attempt or 0]
                if attempt.path == PATH:
                    yield from self._check_gates(row.key_id, attempt)
                    if attempt.sends == 1:
                        yield from self._check_first(row, attempt, operations)
        for name in {_name(operations[each]) for each in dirty.operations}:
            alike = [each for each in operations.values() if _name(each) == name and _live(each)]
            if name[0] and len(alike) > 1 + self.reopened[name]:
                reopened = self.reopened[name]
                yield f"{len(alike)} refunds of {name} are live, with {reopened} reopened"

    def check_end(self, late: set[str]) -> Iterator[str]:
        """Yield what is wrong at Stripe once all is at rest; `late` attempts came after grace."""
        for charge in self.stripe.account.charges:
            if charge.left < 0:
                yield f"{charge.given_back} of {charge.taken} were given back of {charge.id}"
            made: dict[str | None, list[Refund]] = defaultdict(list)
            for refund in charge.refunds:
                if refund.stands and refund.attempt:
                    made[refund.fields.get("metadata[reference]")].append(refund)
            for reference, refunds in made.items():
                excused = sum(each.attempt in late for each in refunds)
                if len(refunds) > 1 + self.reopened[charge.id, reference] + excused:
                    ids = [each.id for each in refunds]
                    yield f"{charge.id} was given back more than once for {reference}: {ids}"

    def _check_gates(self, key_id: Any, attempt: Attempt) -> Iterator[str]:
        form = dict(parse_qsl(attempt.body.decode()))
        charge = self.stripe.account.find_charge(form["charge"])
        if charge is None:
            yield f"{key_id} gives back of {form['charge']}, which Stripe does not have"
            return
        amount, currency = int(form["amount"]), charge.fields["currency"]
        lineage = self.lineage_of[key_id]
        policy = self.policies[lineage]
        caps, above = policy.refund_caps, policy.refund_approval_above
        if any(limits and currency not in limits for limits in (*caps.tables(), above)):
            yield f"{key_id} gives {currency} back, and no gate of its policy knows that currency"
        if amount > caps.per_refund.get(currency, amount):
            yield f"{key_id} gives {amount}{currency} back, more than its policy allows"
        asked = amount > above.get(currency, amount)
        if asked and (lineage, charge.id, amount, currency) not in self.approved:
            yield f"{key_id} gives {amount} of {charge.id} back, which no operator approved"

    def _check_first(
        self, row: Any, attempt: Attempt, operations: Mapping[OperationId, Operation]
    ) -> Iterator[str]:
        """Check a send that is no repetition by what Stripe had when the request came."""
        form = dict(parse_qsl(attempt.body.decode()))
        charge = self.stripe.account.find_charge(form["charge"])
        asked_ms = self.asked_ms[row.request_id]
        if charge is None:
            return
        shown = [
            each
            for each in charge.refunds
            if each.stands and each.created_ms < asked_ms and each.operation != row.operation_id
        ]
        held = [
            each
            for each in operations.values()
            if each.gives_back == charge.id
            and each.id != row.operation_id
            and _live(each)
            and not self._came_back(charge, each)
            and each.id not in {refund.operation for refund in shown}
            and each.object_id not in {refund.id for refund in shown}  # an operator said so
        ]
        given = sum(each.amount for each in shown) + sum(each.amount for each in held)
        if given + int(form["amount"]) > charge.taken:
            yield f"{form['amount']} of {charge.id} is sent, with {given} of {charge.taken} known"
        if any(each.created_ms < asked_ms for each in charge.disputes) and charge.disputed:
            yield f"a refund of {charge.id} is sent, and its bank has the money"
        yield from self._check_count(row, form, operations)

    def _check_count(
        self, row: Any, form: Mapping[str, str], operations: Mapping[OperationId, Operation]
    ) -> Iterator[str]:
        """Check how many refunds of a charge stand beside the new one, each under its own name."""
        mine = form.get("metadata[reference]")
        newest: dict[str | None, Operation] = {}
        for each in operations.values():
            if each.gives_back == form["charge"] and each.reference != mine:
                before = newest.get(each.reference)
                if before is None or before.generation < each.generation:
                    newest[each.reference] = each
        beside = sum(_live(each) for each in newest.values())
        most = self.policies[self.lineage_of[row.key_id]].max_refunds_per_charge
        if beside and (mine is None or beside >= most):
            yield f"a refund of {form['charge']} for {mine} is sent beside {beside} others"

    def _came_back(self, charge: Charge, operation: Operation) -> bool:
        """Say whether what the last attempt of a refund made has failed at Stripe."""
        key = self.key_of.get((operation.id, operation.attempt))
        made = [each for each in charge.refunds if each.attempt == key]
        if operation.state is State.SUCCEEDED:
            made = [each for each in charge.refunds if each.id == operation.object_id]
        return bool(made) and not made[0].stands


def check_refund_answer(
    call: int, form: Mapping[str, str], answer: Answer, account: Account
) -> str:
    """Return what is wrong with the answer to a request for a refund, or nothing."""
    mine = [each for each in account.refunds if each.call == call and each.stands]
    if answer.status == 200:
        found = [each for each in account.refunds if each.id == answer.body.get("id")]
        if not found:
            return f"call {call} was told {answer.body.get('id')}, which Stripe does not have"
        made = found[0].fields | {"charge": found[0].charge.id}
        for name in ("charge", "amount", "metadata[reference]"):
            said = form.get(name)
            if name == "metadata[reference]" and not found[0].operation:
                continue  # an operator named what people made by hand: it bears no reference
            # Without an amount it is what was left when the first such call was decided.
            if made.get(name) != said and not (name == "amount" and said is None):
                return f"call {call} asked for {dict(form)}, was answered {made}"
    elif answer.definite and mine:
        return f"call {call} was told {answer.status} {answer.code}, and made {mine[0].id}"
    return ""


def _name(operation: Operation) -> Name:
    return operation.gives_back or "", operation.reference


def _live(operation: Operation) -> bool:
    if operation.state is State.VOIDED:
        return operation.empty_listings < FREES_AFTER
    return operation.state in {State.RESERVED, State.UNKNOWN, State.SUCCEEDED}
