"""The pure core by itself: deciders and conclusions over a snapshot in memory, a clock in hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlencode

from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.ledger.records import (
    AuditDraft,
    KeyId,
    Lineage,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    VaultKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot, StoreSettings
from kb_mcp.proxy.rules.command import Command, Decision, Proceed, Refuse
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.rules.operation_names import Name, caller_keys, name_of, older_caller_keys
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.rules.outcomes.resolve import Absent, Finding, resolve, take
from kb_mcp.proxy.stripe.evidence import (
    Declined,
    Ending,
    Made,
    NeverBegan,
    Nothing,
    Proof,
    Rejected,
)
from kb_mcp.proxy.stripe.forms import parse_form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint, read_request

MINUTE, HOUR = 60_000, 3_600_000
# 2026-11-24, an hour after midnight.
START_MS = 1_795_482_000_000
FORM_TYPE = "application/x-www-form-urlencoded"
PERIOD = "metadata[billing_period]"
BILLING = Policy.model_validate({"role": "billing", "allow": ("POST /v1/charges",)})
KEY, LINEAGE = KeyId("one"), LineageId("one")
ALICE = VaultKey(
    id=KEY, lineage_id=LINEAGE, token_hash="", mode="test", role="billing", label=None,
    agent=None, policy="", created_at=START_MS, expires_at=None,
)  # fmt: skip


def made(object_id: str, status: str = "succeeded", verdict: str = "done") -> Made:
    body = json.dumps({"id": object_id, "object": "charge", "status": status}).encode()
    return Made(object_id, status, verdict, 200, body)


def declined(object_id: str | None = None) -> Declined:
    return Declined(object_id, 402, b"{}", "card_declined")


LOST = Nothing("timeout")
NEVER_SENT = NeverBegan("upstream_unreachable")
REJECTED = Rejected(400, b"{}", "parameter_missing", ours=False)


@dataclass(slots=True)
class OneKey:
    """One key, one standing. Every row is always loaded: what a store leaves out is its test."""

    policy: Policy = BILLING
    snapshot: Snapshot = field(
        default_factory=lambda: Snapshot(
            now=START_MS,
            settings=StoreSettings(account="test", mode="test"),
            keys={KEY: ALICE},
            lineages={LINEAGE: Lineage(LINEAGE)},
            unresolved={LINEAGE: 0},
            outstanding_approvals={LINEAGE: 0},
        )
    )
    numbers: count[int] = field(default_factory=lambda: count(1))

    def pass_time(self, milliseconds: int) -> None:
        self.snapshot.now += milliseconds

    def intend(self, header: str | None = None, **fields: object) -> Command:
        form = {"customer": "cus_A1", "amount": 2900, "currency": "usd", **fields}
        if "period" in form:
            form[PERIOD] = form.pop("period")
        body = urlencode({name: str(value) for name, value in form.items()}).encode()
        parsed = parse_form(body, FORM_TYPE, b"", "POST")
        assert not isinstance(parsed, Exception)
        reading = read_request("POST", "/v1/charges", parsed, header)  # type: ignore[arg-type] # a refusal fails below
        assert isinstance(reading, Reading), reading
        assert reading.money is not None
        name = name_of(self.policy, reading)
        assert isinstance(name, Name), name
        by_body = name.named_by is NamedBy.BODY
        number = next(self.numbers)
        return Command(
            reading=reading,
            money=reading.money,
            policy=self.policy,
            key_id=KEY,
            lineage_id=LINEAGE,
            name=name.text,
            named_by=name.named_by,
            upstream_name=name.upstream_name,
            fingerprint=fingerprint(reading),
            stripe_version=None,
            older_names=name.older,
            caller_keys=caller_keys(b"secret", reading) if by_body else (),
            older_caller_keys=older_caller_keys(reading) if by_body else (),
            fresh_id=OperationId(f"op_{number}"),
            fresh_approval_id=f"apr_{number}",
            owner="me",
            lease_ms=35_000,
            request=AuditDraft(kind="decision"),
        )

    def ask(self, header: str | None = None, **fields: object) -> Decision:
        """Decide one command, and let the snapshot see it."""
        decision = decide(self.snapshot, self.intend(header, **fields))
        self.snapshot.apply(decision.changes)
        return decision

    def end(self, go: Decision, proof: Proof) -> Operation:
        """Conclude the send that `go` allowed."""
        assert isinstance(go, Proceed), go
        ending = Ending(
            operation_id=go.operation.id,
            attempt=go.attempt.number,
            token=go.operation.lease_token,
            proof=proof,
            daily_declines=self.policy.daily_declines,
            request=AuditDraft(kind="outcome"),
        )
        after, changes = conclude(self.snapshot, ending)
        self.snapshot.apply(changes)
        return after

    def read(self, operation_id: OperationId, finding: Finding) -> Operation | None:
        """Lease an operation, and resolve it by what a reading of Stripe found."""
        taken, changes = take(self.snapshot, operation_id, "recovery")
        self.snapshot.apply(changes)
        if taken is None:
            return None
        after, changes = resolve(self.snapshot, taken[0], finding, self.policy.daily_declines)
        self.snapshot.apply(changes)
        return after

    def void(self, operation_id: OperationId) -> None:
        """Let grace pass and find nothing."""
        self.pass_time(self.snapshot.settings.recovery_grace_ms + 1)
        self.read(operation_id, Absent())

    def free(self, operation_id: OperationId) -> None:
        """Find nothing twice more, the last time after 25 hours."""
        self.pass_time(HOUR)
        self.read(operation_id, Absent())
        self.pass_time(24 * HOUR)
        self.read(operation_id, Absent())


def told(decision: Decision) -> str:
    """Say a decision in a word: the upstream key's suffix, or the refusal's code."""
    if isinstance(decision, Refuse):
        return decision.refusal.code.value
    if isinstance(decision, Proceed):
        key = decision.attempt.upstream_key
        return f"proceed as K{key.partition('-')[1]}{key.partition('-')[2]}"
    return type(decision).__name__.lower()


def fold(snapshot: Snapshot, commands: Iterable[Command]) -> list[Decision]:
    """Decide a batch in order, as a store does: each command sees what those before it left."""
    decisions: list[Decision] = []
    for command in commands:
        decisions.append(decide(snapshot, command))
        snapshot.apply(decisions[-1].changes)
    return decisions
