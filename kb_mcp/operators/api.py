"""The admin API: what operators read and do over HTTP, as JSON, for their programs.

Floor: operators, below the dashboard, whose forms call the same acts. Reads are `views`, rules are
`actions`: an act only reads what is said, and every one is audited with the operator's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kb_mcp.operators.actions.grants import add_grant, new_grant, remove_grant
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
Endpoint = Callable[[Request], Awaitable[Response]]
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
        """Unfreeze a key."""
        await self.views.key(key_id)
        reason = _reason(check_body(UnfreezeBody, said).reason, "Say why the key is unfrozen.")
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
        matches = [f"{name}={value}" for name, value in body.match.items()]
        return await self.grant_to(body, matches, operator)

    async def grant_to(self, body: GrantBody, matches: Sequence[str], operator: str) -> Record:
        """Add the grant that `body` describes, for `matches` like `sub=agent-*`."""
        wanted = new_grant(body.issuer, matches, body.key_id, clean_reason(body.label))
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
        decided = await decide_approval(self.views.ledger, approval_id, verdict, operator)
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
        """Let a refunded bill be billed once more, or free its days."""
        acts, operation = await self._at_stripe(operation_id)
        body = check_body(ReopenBody, said)
        by, wanted = By(operator, _reason(body.reason)), Reopening(body.amount, body.release)
        return await self._done(await acts.reopen(operation, by, wanted))

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


@dataclass(frozen=True, slots=True)
class AdminApi:
    """Serves `/admin/v1`: the acts, and the lists that they change."""

    acts: Acts
    access: Access

    @property
    def _views(self) -> Views:
        return self.acts.views

    def routes(self) -> list[Route]:
        """Return the routes, each behind an operator's token."""
        shown: dict[str, Callable[[Request], Awaitable[Record | Rows]]] = {
            "/keys": self.keys,
            "/keys/{id}": self.key,
            "/operations": self.operations,
            "/operations/{id}": self.operation,
            "/spend": self.spend,
            "/audit": self.audit,
            "/approvals": self.approvals,
            "/grants": self.grants,
        }
        return [
            *(Route(PREFIX + path, self._showing(show), methods=["GET"])
              for path, show in shown.items()),
            *(Route(PREFIX + path, self._doing(act, 201 if path in _MAKING else 200),
                    methods=["POST"]) for path, act in self.acts.table().items()),
        ]  # fmt: skip

    async def keys(self, request: Request) -> Rows:
        """Return every key."""
        read_query(request, ())
        return await self._views.keys()

    async def key(self, request: Request) -> Record:
        """Return one key."""
        return await self._views.key(request.path_params["id"])

    async def operations(self, request: Request) -> Rows:
        """Return matching operations, newest first."""
        query = read_query(request, (*OPERATION_FILTERS, "limit"))
        return await self._views.operations(read_limit(query), **operation_filters(query))

    async def operation(self, request: Request) -> Record:
        """Return one operation."""
        return await self._views.operation(request.path_params["id"])

    async def spend(self, request: Request) -> Rows:
        """Return spend against cap."""
        query = read_query(request, ("key", "day"))
        day = read_day(query, self._views.now_ms())
        if "key" in query:
            return await self._views.spend_of(day, query["key"])
        return await self._views.spend(day)

    async def audit(self, request: Request) -> Rows:
        """Return matching audit rows, newest first."""
        query = read_query(request, (*AUDIT_FILTERS, "since", "until", "limit"))
        now = self._views.now_ms()
        span = {name: read_moment(query, name, now) for name in ("since", "until")}
        filters = {name: query.get(name) for name in AUDIT_FILTERS}
        return self._views.audit(read_limit(query), **filters, **span)

    async def approvals(self, request: Request) -> Rows:
        """Return approvals, newest first."""
        query = read_query(request, ("state", "limit"))
        return await self._views.approvals(read_limit(query), query.get("state"))

    async def grants(self, request: Request) -> Rows:
        """Return every grant that is not removed."""
        read_query(request, ())
        return await self._views.grants()

    def _showing(self, show: Callable[[Request], Awaitable[Record | Rows]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            self.access.bearer(request)
            found = await show(request)
            if isinstance(found, dict):
                return JSONResponse(found)
            # A list may be of ten thousand keys: msgspec takes a tenth of the time for it.
            body = msgspec.json.encode({"object": "list", "data": found})
            return Response(body, media_type="application/json")

        return endpoint

    def _doing(self, act: Act, status: int) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            operator = self.access.bearer(request)
            said = await read_object(request)
            return JSONResponse(
                await act(request.path_params.get("id", ""), said, operator), status
            )

        return endpoint


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
