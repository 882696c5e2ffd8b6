"""The proxy's own paths on the agents' listener: health, the key itself, its operations.

Floor: in the edge, above pipeline and records. It reads the ledger, and Stripe only for readiness
(any answer but a 401 shows that there is a way) and for the refunds of a charge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec.structs import replace

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.periods import PeriodError, parse_period
from kb_mcp.proxy.access.authenticate import Admitted, presented_token
from kb_mcp.proxy.access.authorize import may_touch
from kb_mcp.proxy.access.grants import check_scopes
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.edge.pipeline import RequestPipeline
from kb_mcp.proxy.edge.records import Record, key_record, operation_records, spend_records
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import LedgerUnavailableError, note
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId
from kb_mcp.proxy.rules.operation_names import attempt_key
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.evidence import created_ms, customer_of, mark_of
from kb_mcp.proxy.stripe.messages import Answered, Reply, Request, refused
from kb_mcp.proxy.stripe.reader import StripeReads

_KEY = b"/keybrake/v1/key"
_OPERATIONS = b"/keybrake/v1/operations"
_FILTERS = ("customer_id", "billing_period", "charge_id")
_MATCHES_MAX = 100
_READS_BILLS = ("GET /v1/charges", "GET /v1/payment_intents")
ASK_EVERY_MS = 5_000
ASK_WITHIN_MS = 2_000
CHARGE_OR_INTENT: Final = re.compile(r"(?:ch|py|pi)_[A-Za-z0-9]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyApi:
    """Serves `/keybrake/v1/*`, `/healthz` and `/readyz`."""

    records: StoreReads
    pipeline: RequestPipeline
    readiness: Readiness

    async def health(self, request: Request) -> Reply:
        """Say whether the process is alive, and for `/readyz` whether it could charge."""
        if request.raw_path == b"/healthz":
            return _json({"status": "ok"})
        try:
            store = await self.records.ping() and not self.pipeline.governor.gate.closed
        except LedgerUnavailableError:
            store = False
        upstream = await self.readiness.reachable()
        ready = store and upstream
        status = "ok" if ready else "unavailable"
        body = {"status": status, "store": store, "upstream": upstream}
        return _json(body, 200 if ready else 503)

    async def serve(self, request: Request) -> Reply:
        """Answer a request to `/keybrake/…`. Raises: LedgerUnavailableError."""
        admitted = await self.pipeline.admit(presented_token(request))
        if isinstance(admitted, Refusal):
            return refused(admitted)
        over = self.pipeline.rate(admitted)
        if over is not None:
            return self.pipeline.turn_away(over, admitted.key.id)
        answer = await self._answer(admitted, request)
        code = answer.code.value if isinstance(answer, Refusal) else None
        base = self.pipeline.audit_base(admitted, request)
        await note(self.pipeline.ledger, replace(base, kind="read", decision="own", code=code))
        return refused(answer) if isinstance(answer, Refusal) else answer

    async def _answer(self, admitted: Admitted, request: Request) -> Reply | Refusal:
        if request.raw_path not in {_KEY, _OPERATIONS}:
            return refuse(Code.PATH_UNKNOWN)
        if request.method != "GET":
            return refuse(Code.METHOD_NOT_ALLOWED)
        if request.raw_path == _KEY:
            return await self._key(admitted)
        return await self._operations(admitted, request)

    async def _key(self, admitted: Admitted) -> Reply | Refusal:
        found = await self.pipeline.ledger.find_key(admitted.key.id)
        if found is None:
            return refuse(Code.VAULT_KEY_UNKNOWN)
        now, scopes = self.pipeline.clock.now(), admitted.scopes
        today = day_of(now)
        starts = today.isoformat(), today.replace(day=1).isoformat()
        (spent,) = await self.records.spend_of_keys([admitted.key.id], *starts, now)
        record = key_record(*found, admitted.policy)
        allow = record["policy"]["allow"]
        record["policy"]["allow"] = [each for each in allow if check_scopes(scopes, each) is None]
        record["spend"] = spend_records(spent, starts)
        return _json(record)

    async def _operations(self, admitted: Admitted, request: Request) -> Reply | Refusal:
        beyond = check_scopes(admitted.scopes, f"GET {_OPERATIONS.decode()}")
        if beyond is not None:
            return beyond
        if not any(entry.startswith(_READS_BILLS) for entry in admitted.policy.allow):
            return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason="it may not read charges")
        query = dict(parse_qsl(request.query.decode("ascii", "replace")))
        filters = {name: query[name] for name in _FILTERS if name in query}
        if not ({"customer_id", "billing_period"} <= filters.keys() or "charge_id" in filters):
            return refuse(Code.PARAMETER_MISSING, param="customer_id")
        try:
            if "billing_period" in filters:
                filters["billing_period"] = parse_period(filters["billing_period"]).label
        except PeriodError as error:
            return refuse(Code.PARAMETER_INVALID, param="billing_period", reason=str(error))
        found = await self.records.operations(**filters, limit=_MATCHES_MAX)
        policy, customers = admitted.policy, {operation.customer for operation, _ in found}
        visible = {each for each in customers if await self.pipeline.may_touch(policy, each)}
        # What the key has made itself it sees, whatever can be looked up now.
        own = admitted.key.lineage_id
        shown = [each for each in found if each[0].customer in visible or each[0].lineage_id == own]
        data = await operation_records(self.records, shown, self.pipeline.clock.now())
        named = filters.get("charge_id")
        refunds = None if named is None else await self._refunds_of(policy, named)
        told = {} if refunds is None else {"refunds": refunds}
        return _json({"object": "list", "data": data} | told)

    async def _refunds_of(self, policy: Policy, named: str) -> list[Record] | None:
        """Return the refunds of a charge or an intent, newest first, whoever made them.

        None where Stripe does not say, or where the charge is not the key's to see.
        Raises: LedgerUnavailableError.
        """
        charges = self.pipeline.charges
        charge = await self._visible(policy, named) if CHARGE_OR_INTENT.fullmatch(named) else None
        if charge is None:
            return None
        listed = await charges.stripe.walk("/v1/refunds", 0, charge=charge)
        if not isinstance(listed, list):
            return None
        known = await charges.known(charge)
        ours: dict[str | None, OperationId] = {each.object_id: each.id for each in known}
        marks = {mark_of(each) for each in listed}
        unseen = [
            each
            for each in sorted(known, key=lambda each: each.created_at, reverse=True)
            if each.state in HOLDING and attempt_key(each, each.attempt) not in marks
        ]
        return [*map(_in_doubt, unseen), *(_made(each, ours) for each in listed)]

    async def _visible(self, policy: Policy, named: str) -> str | None:
        charges = self.pipeline.charges
        charge = await charges.charge_of(named)
        if not isinstance(charge, str):
            return None
        if policy.customers.any:
            return charge
        found = await charges.stripe.body(f"/v1/charges/{charge}")
        owner = None if found is None else customer_of(found)
        return charge if owner is not None and may_touch(policy, owner) else None


def _json(body: object, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(body))


@dataclass(slots=True)
class Readiness:
    """Remembers the last look by `stripe`."""

    stripe: StripeReads
    _looked_at: int = field(default=-ASK_EVERY_MS, init=False)
    _reachable: bool = field(default=False, init=False)

    async def reachable(self) -> bool:
        """Say whether Stripe answered and knows our key, now or a few seconds ago."""
        now = self.stripe.boottime_ms()
        if now >= self._looked_at + ASK_EVERY_MS:
            self._looked_at = now
            answer = await self.stripe.fetch("/v1/charges?limit=1", ASK_WITHIN_MS)
            self._reachable = isinstance(answer, Answered) and answer.status != 401
        return self._reachable


def _made(refund: Mapping[str, Any], ours: Mapping[str | None, OperationId]) -> Record:
    refund_id, made_at = refund.get("id"), created_ms(refund.get("created"))
    return {
        "refund_id": refund_id,
        "charge_id": refund.get("charge"),
        **{name: refund.get(name) for name in ("amount", "currency", "status")},
        "operation_id": ours.get(refund_id),
        "created_at": None if made_at is None else rfc3339(made_at),
    }


def _in_doubt(refund: Operation) -> Record:
    return {
        "refund_id": None,
        "charge_id": refund.gives_back,
        "amount": refund.amount,
        "currency": refund.currency,
        "status": "unknown",
        "operation_id": refund.id,
        "created_at": rfc3339(refund.created_at),
    }
