"""What must be true, whatever happened: after every commit, of every answer, and at the end.

The mirror is fed from committed transactions alone. Caps, windows and guards are worked out here
anew, from the operations, not with the product's functions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kb_mcp.proxy.ledger.records import LineageId, Operation, OperationId, State, Window, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from tests.faults.account import Account, Charge, Made
from tests.faults.gates import Gates, overlapping
from tests.faults.refund_books import RefundBooks

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy

HELD = {State.RESERVED, State.UNKNOWN}
MARK_STEP_MS = 1_000
REFUNDS = "_refunds"  # ends the name of a window of what is given back
FREES_AFTER = 3


class ViolationError(AssertionError):
    """An invariant does not hold in this seed."""

    def __init__(self, seed: int, what: str, trace: list[str]) -> None:
        self.seed, self.what, self.trace = seed, what, list(trace)
        super().__init__(f"SEED={seed}: {what}")

    def story(self) -> str:
        return "\n".join([*self.trace, f"SEED={self.seed}: {self.what}"])


@dataclass(slots=True)
class Mirror:
    """What has been committed so far, and what of it is wrong (`broken`)."""

    policies: Mapping[LineageId, Policy]
    ceilings: Mapping[str, int]
    refund_ceilings: Mapping[str, int]
    gates: Gates
    refunds: RefundBooks
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    windows: dict[WindowKey, Window] = field(default_factory=dict)
    owner_of_key: dict[str, tuple[OperationId, int]] = field(default_factory=dict)
    leave: Counter[tuple[str, int]] = field(default_factory=Counter)
    sent: Counter[tuple[str, int]] = field(default_factory=Counter)
    revoked: set[str] = field(default_factory=set)
    reopened: dict[OperationId, Operation] = field(default_factory=dict)
    high_water: int = 0
    broken: list[str] = field(default_factory=list)

    def note_commit(self, snapshot: Snapshot) -> Iterator[str]:
        """Take over what a transaction committed, check it, and say it in words."""
        dirty = snapshot.dirty
        for operation_id in dirty.operations:
            operation = snapshot.operations[operation_id]
            self.operations[operation_id] = operation
            yield (
                f"{operation.id[-6:]} {operation.customer} {operation.amount}{operation.currency} "
                f"{operation.period} {operation.state} attempt {operation.attempt} "
                f"token {operation.lease_token} {operation.code or ''}"
            )
        before = {key: self.windows[key] for key in dirty.windows if key in self.windows}
        for key in dirty.windows:
            self.windows[key] = snapshot.windows[key]
        for operation_id, number in dirty.attempts:
            attempt = snapshot.attempts[operation_id, number]
            self.owner_of_key[attempt.upstream_key] = (operation_id, number)
        for row in dirty.audit:
            if row.kind == "decision":
                yield f"{row.decision} {row.code or ''} for {(row.operation_id or 'none')[-6:]}"
            self._note_audit(row)
            if row.kind == "admin" and row.decision in {"reopen", "waive"}:
                self._note_reopened(self.operations[OperationId(row.operation_id or "")])
        self.broken += self.gates.note(snapshot)
        self.broken += self.refunds.note(snapshot, self.operations)
        self._check_time(snapshot)
        self._check_caps(dirty.windows, before)
        self._check_guards(dirty.operations)

    def note_send(self, upstream_key: str) -> None:
        """Count a send that leaves now: its decision must have been committed before."""
        owner = self.owner_of_key.get(upstream_key)
        if owner is None:
            self.broken.append(f"{upstream_key} was sent, and no attempt was ever committed")
            return
        self.sent[owner] += 1
        if self.sent[owner] > self.leave[owner]:
            self.broken.append(
                f"{upstream_key} was sent {self.sent[owner]} times, with {self.leave[owner]} "
                "decisions in the audit"
            )

    def _note_audit(self, row: Any) -> None:
        if row.kind == "decision" and row.decision == "proceed":
            self.leave[row.operation_id, row.attempt] += 1
            if row.key_id in self.revoked:
                self.broken.append(f"{row.key_id} reserved after its revocation was committed")
        if row.kind == "admin" and row.decision == "revoke":
            self.revoked.add(row.key_id)

    def _note_reopened(self, operation: Operation) -> None:
        if operation.gives_back is None:
            self.reopened[operation.id] = operation
        else:
            self.refunds.reopened[operation.gives_back, operation.reference] += 1

    def _check_time(self, snapshot: Snapshot) -> None:
        """Check what binds: the time by which something was billed, where it was certain."""
        if snapshot.skewed or not snapshot.dirty.operations:
            return
        if snapshot.now < self.high_water - MARK_STEP_MS:
            self.broken.append(f"time ran back by {self.high_water - snapshot.now} ms")
        self.high_water = max(self.high_water, snapshot.now)

    def _check_caps(self, keys: Iterable[WindowKey], before: Mapping[WindowKey, Window]) -> None:
        for key in keys:
            window, cap, old = self.windows[key], self._cap(key), before.get(key)
            held = sum(each.held for each in self.operations.values() if _holds(each, key))
            if key.currency and window.reserved != held:
                self.broken.append(f"{window.reserved} are reserved in {key}, not {held}")
            spent = window.reserved + window.settled
            if cap is None or spent <= cap:
                continue
            late = sum(
                each.amount
                for each in self.operations.values()
                if each.overshoot and key in places(each)
            )
            # A ceiling that was lowered takes nothing back: it holds for what comes.
            before_it = 0 if old is None else old.reserved + old.settled
            if spent - late > max(cap, before_it):
                self.broken.append(f"{spent} of {cap} in {key}, of which {late} turned up late")

    def _cap(self, key: WindowKey) -> int | None:
        refunds = key.scope.endswith(REFUNDS)
        scope = key.scope.removesuffix(REFUNDS)
        if scope == "account":
            return (self.refund_ceilings if refunds else self.ceilings).get(key.currency)
        if scope == "customer":
            return None  # each lineage has its own limit on it
        policy = self.policies[LineageId(key.scope_id)]
        caps = policy.refund_caps if refunds else policy.caps
        return (caps.daily if key.window == "day" else caps.monthly).get(key.currency)

    def _check_guards(self, changed: Iterable[OperationId]) -> None:
        for operation_id in changed:
            one = self.operations[operation_id]
            if one.period is None or not live(one):
                continue
            for other in self.operations.values():
                if other.id == one.id or other.customer != one.customer or not live(other):
                    continue
                bills = {(each.period, each.reference or "") for each in (one, other)}
                bound = (one.period, one.amount, one.currency) == (
                    other.period, other.amount, other.currency,
                )  # fmt: skip
                if bound and {one.id, other.id} & set(self.reopened):
                    continue
                if one.overshoot or other.overshoot:
                    continue  # a yes that came later than grace beats a void: see check_end
                if len(bills) == 1:
                    self.broken.append(f"{one.id} and {other.id} are live for one bill")
                if overlapping(one, other):
                    self.broken.append(
                        f"{one.id} and {other.id} are live for some of the same days"
                    )


def _holds(operation: Operation, key: WindowKey) -> bool:
    under_way = operation.state is State.SUCCEEDED and not operation.final
    return (operation.state in HELD or under_way) and key in places(operation)


def live(operation: Operation) -> bool:
    """Say whether an operation occupies its guards."""
    if operation.state is State.VOIDED:
        return operation.empty_listings < FREES_AFTER
    return operation.state in HELD or operation.state is State.SUCCEEDED


def places(operation: Operation) -> set[WindowKey]:
    """Return the windows of money in which `operation` was reserved."""
    day = datetime.fromtimestamp(operation.reserved_at // 1000, UTC).date()
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    of = REFUNDS if operation.gives_back is not None else ""
    found = {
        WindowKey(f"account{of}", "", "day", today, operation.currency),
        WindowKey(f"key{of}", operation.lineage_id, "day", today, operation.currency),
        WindowKey(f"key{of}", operation.lineage_id, "month", month, operation.currency),
    }
    if operation.customer is not None:
        found.add(WindowKey(f"customer{of}", operation.customer, "day", today, operation.currency))
    return found


def check_end(
    operations: Iterable[Operation],
    windows: Iterable[Window],
    account: Account,
    overtaken: set[str],
    missed: set[str],
) -> Iterator[str]:
    """Yield what is wrong between the ledger and Stripe once everything has come to rest.

    Requests of the attempts in `overtaken` came later than grace; of those in `missed` later than
    the last listing, too, by a clock that an operator was wrong about.
    """
    operations = list(operations)
    everything = (*account.charges, *account.refunds)
    marked = [each for each in everything if each.operation]
    # What people made by hand is an operation's where an operator said so.
    said = {operation.object_id: operation.id for operation in operations}
    paid: dict[str, list[Made]] = defaultdict(list)
    for made in everything:
        owner = made.operation or said.get(made.id)
        if made.stands and owner is not None and made.attempt not in missed:
            paid[owner].append(made)
    by_hand = [each for each in everything if each.stands and not each.operation]
    for operation in operations:
        mine = paid.pop(operation.id, [])
        if not (operation.code == "unmarked_charge" and _may_be(operation, by_hand)):
            yield from _check_operation(operation, mine)
        late = overtaken & {each.attempt for each in marked if each.operation == operation.id}
        named_by_hand = operation.object_id in {each.id for each in by_hand}
        if operation.overshoot and not late and not named_by_hand:
            yield f"{operation.id} was voided, though its request came within grace"
    for orphan in paid:
        yield f"Stripe has objects of {orphan}, which the ledger does not know"
    yield from _check_windows(operations, windows)


def _may_be(operation: Operation, by_hand: Iterable[Made]) -> bool:
    """Say whether people made what may be this refund: then only they can say what became of it."""
    charges = [each.fields.get("charge") for each in by_hand if each.amount == operation.amount]
    return operation.gives_back in charges


def _check_operation(operation: Operation, paid: list[Made]) -> Iterator[str]:
    named = f"{operation.id} ({operation.state}, {operation.code})"
    if len(paid) > 1:
        yield f"{named} was made {len(paid)} times: {', '.join(each.id for each in paid)}"
    if operation.state is State.SUCCEEDED:
        if [each.id for each in paid] != [operation.object_id]:
            yield f"{named} says {operation.object_id}, Stripe has {[each.id for each in paid]}"
        elif paid[0].moved != operation.held:
            yield f"{named} settled {operation.held}, Stripe moved {paid[0].moved}"
    elif paid:
        yield f"{named}, but Stripe has {paid[0].id}"
    if operation.state in HELD:
        yield f"{named} is unresolved, though a reading would tell"
    # Who died in a step on what is over leaves a lease that runs out, and keeps nobody waiting.
    ended = operation.state in {State.SUCCEEDED, State.FAILED} and operation.final
    if operation.lease_owner is not None and not (ended and operation.attempt > 1):
        yield f"{named} is still leased by {operation.lease_owner}"


def _check_windows(operations: list[Operation], windows: Iterable[Window]) -> Iterator[str]:
    reserved: Counter[WindowKey] = Counter()
    settled: Counter[WindowKey] = Counter()
    for operation in operations:
        for place in places(operation):
            if operation.state in HELD:
                reserved[place] += operation.held
            elif operation.state is State.SUCCEEDED:
                settled[place] += operation.held
            elif operation.held:
                yield f"{operation.id} is {operation.state} and holds {operation.held}"
    for window in windows:
        if not window.key.currency:
            continue
        wanted = (reserved[window.key], settled[window.key])
        if (window.reserved, window.settled) != wanted:
            found = (window.reserved, window.settled)
            yield f"reserved, settled are {found} in {window.key}, the operations say {wanted}"


def check_answer(call: int, form: Mapping[str, str], answer: Answer, charges: list[Charge]) -> str:
    """Return what is wrong with one answer to a caller, or nothing."""
    mine = [each for each in charges if each.call == call and each.stands]
    if answer.status == 200:
        found = [each for each in charges if each.id == answer.body.get("id")]
        if not found:
            return f"call {call} was told {answer.body.get('id')}, which Stripe does not have"
        if answer.body.get("status") == "failed":
            return ""  # the last decline of the bill, whatever its amount was then
        for name in ("customer", "amount", "currency", "metadata[reference]"):
            if found[0].fields.get(name) != form.get(name):
                return f"call {call} asked for {dict(form)}, was answered {found[0].fields}"
    elif answer.definite and mine:
        return f"call {call} was told {answer.status} {answer.code}, and made {mine[0].id}"
    return ""


def check_capture_answer(call: int, answer: Answer, account: Account) -> str:
    """Return what is wrong with the answer to a request for a capture, or nothing."""
    taken = [each for each in account.charges if each.captured_by == call]
    if answer.status == 200:
        found = account.find_charge(str(answer.body.get("id")))
        if found is None or (answer.body.get("captured") and not found.taken):
            return f"call {call} was told that {answer.body.get('id')} is captured"
    elif answer.definite and taken:
        return f"call {call} was told {answer.status} {answer.code}, and captured {taken[0].id}"
    return ""


def check_made_up(
    made_up: Mapping[int, str], charges: Iterable[Charge], mirror: Mirror
) -> Iterator[str]:
    """Yield the requests, by an SDK's own key and body, that were charged more than once."""
    again = {operation.customer for operation in mirror.reopened.values()}
    paid = Counter(
        made_up[each.call]
        for each in charges
        if each.call is not None
        and each.call in made_up
        and each.stands
        and each.fields.get("customer") not in again
    )
    for request, times in paid.items():
        if times > 1:
            yield f"{request} was charged {times} times"


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as its caller reads it. A replayed one is of whoever was first."""

    status: int
    body: Mapping[str, Any]

    @property
    def code(self) -> str:
        error = self.body.get("error") or {}
        return str(error.get("code") or error.get("type") or "")

    @property
    def definite(self) -> bool:
        """Say whether the caller was told that its own request made nothing."""
        return self.status in {400, 401, 402, 403, 429, 502, 503}

    @classmethod
    def read(cls, status: int, body: bytes) -> Answer:
        return cls(status, json.loads(body))
