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

from kb_mcp.operators.actions.grants import NewGrant, add_grant, remove_grant
from kb_mcp.operators.actions.keys import (
    clean_reason,
    issue_key,
    read_new_key,
    revoke_key,
    rotate_key,
    unfreeze_key,
)
from kb_mcp.operators.actions.operations import (
    By,
    Done,
    NotDecided,
    NotDone,
    Reopening,
    Verdict,
    decide_approval,
    reset_declines,
)
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.reports.views import Views
from kb_mcp.operators.requests import (
    APPROVAL_STATES,
    AUDIT_FILTERS,
    OPERATION_FILTERS,
    GrantBody,
    InputError,
    NoBody,
    ReasonBody,
    ReopenBody,
    ResolveBody,
    RotateBody,
    UnfreezeBody,
    check_body,
    operation_filters,
    read_choice,
    read_day,
    read_limit,
    read_moment,
    read_object,
    read_overlap,
    read_query,
)
from kb_mcp.operators.sign_in import Access
from kb_mcp.proxy.access.tokens import Minted
from kb_mcp.proxy.edge.records import Record, Spend, grant_record
from kb_mcp.proxy.ledger.records import KeyId, Operation

REVOKE_WAIT_S = 5
PREFIX = "/admin/v1"
Said = Mapping[str, Any]
Act = Callable[[str, Said, str], Awaitable[Record]]
Rows = Sequence[Record | Spend]
Query = Mapping[str, str]
# Whose record is new: a key with its token, or a grant.
_MAKING = frozenset({"/keys", "/keys/{id}/rotate", "/grants"})


@dataclass(frozen=True, slots=True)
class Acts:
    """What operators do: an act takes the id in its path, what is said, and who says it.

    `random_bytes(n)` yields n unpredictable bytes for new keys; without `stripe` nothing is done
    that has to be compared with Stripe. Raises: InputError, what `input_error` knows.
    """

    views: Views
    random_bytes: Callable[[int], bytes]
    stripe: StripeActs | None = None

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

    async def issue(self, _id: str, said: Said, operator: str) -> Record:
        """Issue a key; this record alone holds its token."""
        wanted = read_new_key(said, self.views.mode, self.views.now_ms())
        _, minted = await issue_key(self.views.ledger, wanted, self.random_bytes, operator)
        return await self._minted(minted)

    async def revoke(self, key_id: str, said: Said, operator: str) -> Record:
        """Revoke a key, and say how many of its sends were under way."""
        await self.views.key(key_id)
        reason = clean_reason(check_body(ReasonBody, said).reason)
        ledger, records = self.views.ledger, self.views.records
        revoked = await revoke_key(ledger, records, KeyId(key_id), reason, operator, REVOKE_WAIT_S)
        counts = {"under_way": revoked.under_way, "still_under_way": revoked.still_under_way}
        return {**await self.views.key(key_id), **counts}

    async def unfreeze(self, key_id: str, said: Said, operator: str) -> Record:
        """Unfreeze a key that is frozen: what is not keeps its count of declines."""
        key = await self.views.key(key_id)
        reason = _reason(check_body(UnfreezeBody, said).reason, "Say why the key is unfrozen.")
        if key["frozen_at"] is None:
            raise InputError(409, "key_not_frozen", f"Vault key {key_id} is not frozen.")
        await unfreeze_key(self.views.ledger, KeyId(key_id), reason, operator)
        return await self.views.key(key_id)

    async def rotate(self, key_id: str, said: Said, operator: str) -> Record:
        """Mint a successor; this record alone holds its token."""
        await self.views.key(key_id)
        overlap_ms = read_overlap(check_body(RotateBody, said).overlap)
        _, minted = await rotate_key(
            self.views.ledger, KeyId(key_id), overlap_ms, self.random_bytes, operator
        )
        return await self._minted(minted)

    async def grant(self, _id: str, said: Said, operator: str) -> Record:
        """Let identities stand for a vault key."""
        body = check_body(GrantBody, said)
        if any("=" in name for name in body.match):
            # As `CLAIM=VALUE` it would be read as another, shorter claim.
            message = "A claim whose name holds an equals sign cannot be matched."
            raise InputError(400, "parameter_invalid", message, "match")
        matches = [f"{name}={value}" for name, value in body.match.items()]
        return await self.grant_to(body, matches, operator)

    async def grant_to(self, body: GrantBody, matches: Sequence[str], operator: str) -> Record:
        """Add the grant that `body` describes, for `matches` like `sub=agent-*`."""
        wanted = NewGrant(body.issuer, matches, body.key_id, clean_reason(body.label))
        grant = await add_grant(self.views.ledger, wanted, self.random_bytes, operator)
        return grant_record(grant)

    async def remove_grant(self, grant_id: str, said: Said, operator: str) -> Record:
        """Remove a grant, and say how many sends of its key were under way."""
        check_body(NoBody, said)
        ledger, records = self.views.ledger, self.views.records
        removed = await remove_grant(ledger, records, grant_id, operator, REVOKE_WAIT_S)
        counts = {"under_way": removed.under_way, "still_under_way": removed.still_under_way}
        return {**grant_record(removed.grant), **counts}

    async def _decide(
        self, verdict: Verdict, approval_id: str, said: Said, operator: str
    ) -> Record:
        check_body(NoBody, said)
        # An id that does not print is nobody's, and PostgreSQL does not take a NUL.
        wanted = approval_id if approval_id.isprintable() else ""
        decided = await decide_approval(self.views.ledger, wanted, verdict, operator)
        if isinstance(decided, NotDecided):
            raise _undecided(decided)
        return (await self.views.approvals(1, approval_id=approval_id))[0]

    async def resolve(self, operation_id: str, said: Said, operator: str) -> Record:
        """Say what became of an unknown operation: the object it made, or that it made none."""
        acts, operation = await self._at_stripe(operation_id)
        body = check_body(ResolveBody, said)
        reason, object_id = clean_reason(body.reason), clean_reason(body.succeeded)
        if (object_id is None) != body.void:
            message = "Give either the object that was made, or void with a reason."
            raise InputError(400, "parameter_invalid", message, "succeeded")
        if body.void:
            reason = _reason(body.reason or "")
        return await self._done(await acts.resolve(operation, object_id, By(operator, reason)))

    async def reopen(self, operation_id: str, said: Said, operator: str) -> Record:
        """Let a refunded bill be billed once more, or free its days.

        `waived` says that it is not refunded: it stays charged, and only a suspicion is waived.
        """
        acts, operation = await self._at_stripe(operation_id)
        body = check_body(ReopenBody, said)
        by, wanted = By(operator, _reason(body.reason)), Reopening(body.amount, body.release)
        outcome = await acts.reopen(operation, by, wanted)
        waived = isinstance(outcome, Done) and outcome.operation.waived and not body.release
        return {**await self._done(outcome), "waived": waived}

    async def reset(self, operation_id: str, said: Said, operator: str) -> Record:
        """Start the count of declines of a bill anew."""
        operation = await self.views.raw_operation(operation_id)
        check_body(NoBody, said)
        declines = await reset_declines(self.views.ledger, operation, By(operator))
        return {"id": operation.id, "declines_forgotten": declines}

    async def _minted(self, minted: Minted) -> Record:
        return {**await self.views.key(minted.id), "token": minted.token}

    async def _at_stripe(self, operation_id: str) -> tuple[StripeActs, Operation]:
        if self.stripe is None:
            message = "This listener has no way to Stripe. Use the command line."
            raise InputError(503, "stripe_unavailable", message)
        return self.stripe, await self.views.raw_operation(operation_id)

    async def _done(self, outcome: Done | NotDone) -> Record:
        if isinstance(outcome, NotDone):
            message = ". ".join(filter(None, [outcome.why, outcome.hint]))
            raise InputError(409, "operation_state", message)
        return await self.views.operation(outcome.operation.id)


async def _spend(views: Views, query: Query) -> Rows:
    day = read_day(query, views.now_ms())
    return await (views.spend_of(day, query["key"]) if "key" in query else views.spend(day))


async def _audit(views: Views, query: Query) -> Rows:
    span = {name: read_moment(query, name, views.now_ms()) for name in ("since", "until")}
    filters = {name: query.get(name) for name in AUDIT_FILTERS}
    return views.audit(read_limit(query), **filters, **span)


# What is read: the filters of each list, and the list.
_LISTS: dict[str, tuple[Collection[str], Callable[[Views, Query], Awaitable[Rows]]]] = {
    "/keys": ((), lambda views, _: views.keys()),
    "/operations": (
        (*OPERATION_FILTERS, "limit"),
        lambda views, query: views.operations(read_limit(query), **operation_filters(query)),
    ),
    "/spend": (("key", "day"), _spend),
    "/audit": ((*AUDIT_FILTERS, "since", "until", "limit"), _audit),
    "/approvals": (
        ("state", "limit"),
        lambda views, query: views.approvals(
            read_limit(query), read_choice(query, "state", APPROVAL_STATES)
        ),
    ),
    "/grants": ((), lambda views, _: views.grants()),
}


@dataclass(frozen=True, slots=True)
class AdminApi:
    """Serves `/admin/v1`: the acts, and the lists that they change."""

    acts: Acts
    access: Access

    def routes(self) -> list[Route]:
        """Return the routes, each behind an operator's token."""
        views = self.acts.views
        one = {"/keys/{id}": views.key, "/operations/{id}": views.operation}
        read = [
            *((path, partial(self._list, *found)) for path, found in _LISTS.items()),
            *((path, partial(self._show, show)) for path, show in one.items()),
        ]
        done = ((path, partial(self._do, path, act)) for path, act in self.acts.table().items())
        return [
            Route(PREFIX + path, answer, methods=[method])
            for method, table in (("GET", read), ("POST", done))
            for path, answer in table
        ]

    async def _list(
        self,
        names: Collection[str],
        found: Callable[[Views, Query], Awaitable[Rows]],
        request: Request,
    ) -> Response:
        self.access.bearer(request)
        data = await found(self.acts.views, read_query(request, names))
        # A list may be of ten thousand keys: msgspec takes a tenth of the time for it.
        body = msgspec.json.encode({"object": "list", "data": data})
        return Response(body, media_type="application/json")

    async def _show(self, show: Callable[[str], Awaitable[Record]], request: Request) -> Response:
        self.access.bearer(request)
        return JSONResponse(await show(request.path_params["id"]))

    async def _do(self, path: str, act: Act, request: Request) -> Response:
        operator = self.access.bearer(request)
        said = await read_object(request)
        record = await act(request.path_params.get("id", ""), said, operator)
        return JSONResponse(record, 201 if path in _MAKING else 200)


def _reason(text: str, without: str = "Say why.") -> str:
    """Return a reason that has to be given. Raises: InputError, which says `without`."""
    reason = clean_reason(text)
    if reason is None:
        raise InputError(400, "parameter_invalid", without, "reason")
    return reason


def _undecided(decided: NotDecided) -> InputError:
    if decided.why == "missing":
        return InputError(404, "approval_unknown", "There is no approval with this id.")
    by = f" by {decided.decided_by}" if decided.decided_by else ""
    message = f"This approval is not pending any more: it is {decided.why}{by}."
    return InputError(409, "approval_not_pending", message)
