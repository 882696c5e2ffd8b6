"""The admin API: what operators read and do over HTTP, as JSON, for their programs.

Floor: operators, below the dashboard, whose forms call the same acts. Reads are `views`, rules are
`actions`: an act only reads what is said, and every one is audited with the operator's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kb_mcp.instants import day_of, parse_duration, rfc3339
from kb_mcp.operators import requests
from kb_mcp.operators.actions import grants, keys, operations
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.reports.views import Views
from kb_mcp.operators.requests import OVERLAP_DEFAULT, Amount, InputError, Reason, Text, invalid
from kb_mcp.operators.sign_in import Access
from kb_mcp.proxy.access.tokens import Minted
from kb_mcp.proxy.edge.records import Record, Spend, grant_record
from kb_mcp.proxy.ledger.records import Operation

REVOKE_WAIT_S = 5
PREFIX = "/admin/v1"
Said = Mapping[str, Any]
Act = Callable[..., Awaitable[Record]]
Rows = Sequence[Record | Spend]
Query = Mapping[str, str]
# Whose record is new: a key with its token, or a grant.
_MAKING = frozenset({"/keys", "/keys/{id}/rotate", "/grants"})


@dataclass(frozen=True, slots=True)
class Acts:
    """What operators do: an act takes what its path is about, who says it, and what is said.

    What its body may say are its keyword arguments. `random_bytes(n)` yields n unpredictable bytes
    for new keys. Raises: InputError, what `input_error` knows.
    """

    views: Views
    random_bytes: Callable[[int], bytes]
    stripe: StripeActs

    def table(self) -> dict[str, Act]:
        """Return the acts by path."""
        return {
            "/keys": self.issue,
            "/keys/{id}/revoke": self.revoke,
            "/keys/{id}/unfreeze": self.unfreeze,
            "/keys/{id}/rotate": self.rotate,
            "/approvals/{id}/approve": partial(self._decide, "approved"),
            "/approvals/{id}/deny": partial(self._decide, "denied"),
            "/grants": self.grant,
            "/grants/{id}/remove": self.remove_grant,
            "/operations/{id}/resolve": self.resolve,
            "/operations/{id}/reopen": self.reopen,
            "/operations/{id}/reset": self.reset,
        }

    async def do(self, path: str, named: str, said: Said, operator: str) -> Record:
        """Do what `said` asks of what is `named` in `path`, for `operator`."""
        act = self.table()[path]
        about: Any = named
        if path.startswith("/keys/"):
            about = await self.views.key(named)
        elif path.startswith("/operations/"):
            about = await self.views.raw_operation(named)
        return await act(about, operator, **requests.read_arguments(act, said))

    async def issue(self, _: str, operator: str, /, **said: Any) -> Record:
        """Issue a key by the fields of a `KeyRequest`; this record alone holds its token."""
        ledger = self.views.ledger
        wanted = keys.read_new_key(said, self.views.mode, self.views.now_ms())
        _key, minted = await keys.issue_key(ledger, wanted, self.random_bytes, operator)
        return await self._minted(minted)

    async def revoke(self, key: Record, operator: str, *, reason: Reason | None = None) -> Record:
        """Revoke a key, and say how many of its sends were under way."""
        ledger, records, why = self.views.ledger, self.views.records, keys.clean_reason(reason)
        counts = await keys.revoke_key(ledger, records, key["id"], why, operator, REVOKE_WAIT_S)
        return await self.views.key(key["id"]) | counts

    async def unfreeze(self, key: Record, operator: str, *, reason: Reason) -> Record:
        """Unfreeze a key that is frozen: what is not keeps its count of declines."""
        why = _reason(reason, "Say why the key is unfrozen.")
        if key["frozen_at"] is None:
            raise InputError(409, "key_not_frozen", f"Vault key {key['id']} is not frozen.")
        await keys.unfreeze_key(self.views.ledger, key["id"], why, operator)
        return await self.views.key(key["id"])

    async def rotate(self, key: Record, operator: str, *, overlap: str = OVERLAP_DEFAULT) -> Record:
        """Mint a successor; this record alone holds its token."""
        overlap_ms = requests.in_field("overlap", parse_duration, overlap)
        ledger, chance = self.views.ledger, self.random_bytes
        _, minted = await keys.rotate_key(ledger, key["id"], overlap_ms, chance, operator)
        return await self._minted(minted)

    async def grant(
        self,
        _: str,
        operator: str,
        *,
        issuer: Reason,
        match: dict[str, str],
        key_id: Text,
        label: Text | None = None,
    ) -> Record:
        """Let the identities of an issuer whose claims match stand for a vault key."""
        if any("=" in name for name in match):
            # As `CLAIM=VALUE` it would be read as another, shorter claim.
            raise invalid("match", "A claim whose name holds an equals sign cannot be matched.")
        claims = [f"{name}={value}" for name, value in match.items()]
        wanted = grants.NewGrant(issuer, claims, key_id, keys.clean_reason(label))
        ledger, chance = self.views.ledger, self.random_bytes
        return grant_record(await grants.add_grant(ledger, wanted, chance, operator))

    async def remove_grant(self, grant_id: str, operator: str) -> Record:
        """Remove a grant, and say how many sends of its key were under way."""
        ledger, records = self.views.ledger, self.views.records
        by = (operator, REVOKE_WAIT_S)
        grant, counts = await grants.remove_grant(ledger, records, grant_id, *by)
        return grant_record(grant) | counts

    async def resolve(
        self,
        operation: Operation,
        operator: str,
        *,
        succeeded: Text | None = None,
        void: bool = False,
        reason: Reason | None = None,
    ) -> Record:
        """Say what became of an unknown operation: the object it made, or that it made none."""
        object_id, why = keys.clean_reason(succeeded), keys.clean_reason(reason)
        if (object_id is None) != void:
            message = "Give either the object that was made, or void with a reason."
            raise invalid("succeeded", message)
        by = operations.By(operator, _reason(reason or "") if void else why)
        return await self._done(await self.stripe.resolve(operation, object_id, by))

    async def reopen(
        self,
        operation: Operation,
        operator: str,
        *,
        reason: Reason,
        amount: Amount | None = None,
        release: bool = False,
    ) -> Record:
        """Let a refunded bill be billed once more, or `release` its days.

        `amount` (minor units) is for another amount than before. `waived` says that it is not
        refunded: it stays charged, and only a suspicion is waived.
        """
        by, wanted = operations.By(operator, _reason(reason)), operations.Reopening(amount, release)
        outcome = await self.stripe.reopen(operation, by, wanted)
        waived = isinstance(outcome, Operation) and outcome.waived and not release
        return await self._done(outcome) | {"waived": waived}

    async def reset(self, operation: Operation, operator: str) -> Record:
        """Start the count of declines of a bill anew."""
        by = operations.By(operator)
        declines = await operations.reset_declines(self.views.ledger, operation, by)
        return {"id": operation.id, "declines_forgotten": declines}

    async def _minted(self, minted: Minted) -> Record:
        return await self.views.key(minted.id) | {"token": minted.token}

    async def _decide(self, verdict: operations.Verdict, approval_id: str, operator: str) -> Record:
        decided = await operations.decide_approval(
            self.views.ledger, approval_id, verdict, operator
        )
        return (await self.views.approvals(1, approval_id=decided.id))[0]

    async def _done(self, outcome: Operation | operations.NotDone) -> Record:
        if isinstance(outcome, operations.NotDone):
            message = ". ".join(filter(None, [outcome.why, outcome.hint]))
            raise InputError(409, "operation_state", message)
        return await self.views.operation(outcome.id)


async def _spend(views: Views, query: Query) -> Rows:
    now = views.now_ms()
    day = day_of(requests.read_past(query, "day", now) or now)
    return await (views.spend_of(day, query["key"]) if "key" in query else views.spend(day))


async def _audit(views: Views, query: Query) -> Rows:
    filters = {name: query.get(name) for name in requests.AUDIT_FILTERS}
    for name in ("since", "until"):
        at = requests.read_past(query, name, views.now_ms())
        filters[name] = rfc3339(at) if at else None
    return views.audit(requests.read_limit(query), **filters)


# What is read: the filters of each list (None: one thing, by its `id`), and how it is found.
_READ: dict[str, tuple[Collection[str] | None, Callable[[Views, Query], Awaitable[Any]]]] = {
    "/keys": ((), lambda views, _: views.keys()),
    "/keys/{id}": (None, lambda views, path: views.key(path["id"])),
    "/operations": (
        (*requests.OPERATION_FILTERS, "limit"),
        lambda views, query: views.operations(
            requests.read_limit(query), **requests.operation_filters(query)
        ),
    ),
    "/operations/{id}": (None, lambda views, path: views.operation(path["id"])),
    "/spend": (("key", "day"), _spend),
    "/audit": ((*requests.AUDIT_FILTERS, "since", "until", "limit"), _audit),
    "/approvals": (
        ("state", "limit"),
        lambda views, query: views.approvals(
            requests.read_limit(query),
            requests.read_choice(query, "state", requests.APPROVAL_STATES),
        ),
    ),
    "/grants": ((), lambda views, _: views.grants()),
}


def admin_routes(acts: Acts, access: Access) -> list[Route]:
    """Return the routes of `/admin/v1`, behind an operator's token: what is read, and the acts."""

    async def shown(path: str, request: Request) -> Response:
        access.bearer(request)
        names, find = _READ[path]
        if names is None:
            return JSONResponse(await find(acts.views, request.path_params))
        data = await find(acts.views, requests.read_query(request, names))
        # A list may be of ten thousand keys: msgspec takes a tenth of the time for it.
        body = msgspec.json.encode({"object": "list", "data": data})
        return Response(body, media_type="application/json")

    async def done(path: str, request: Request) -> Response:
        operator = access.bearer(request)
        said = await requests.read_object(request)
        record = await acts.do(path, request.path_params.get("id", ""), said, operator)
        return JSONResponse(record, 201 if path in _MAKING else 200)

    return [
        *(Route(PREFIX + path, partial(shown, path), methods=["GET"]) for path in _READ),
        *(Route(PREFIX + path, partial(done, path), methods=["POST"]) for path in acts.table()),
    ]


def _reason(text: str, without: str = "Say why.") -> str:
    """Return a reason that has to be given. Raises: InputError, which says `without`."""
    reason = keys.clean_reason(text)
    if reason is None:
        raise invalid("reason", without)
    return reason
