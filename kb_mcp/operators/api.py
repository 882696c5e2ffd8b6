"""The admin API: the commands over HTTP, as JSON, for operators' programs.

Floor: operators, beside the dashboard. Reads are `views`, actions are `actions.keys` and
`actions.approvals`: nothing is decided here, and every action is audited with the operator's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kb_mcp.operators.actions.approvals import NotDecided, Verdict, decide_approval
from kb_mcp.operators.actions.grants import (
    NoSuchGrantError,
    NotGrantedError,
    Removed,
    add_grant,
    new_grant,
    remove_grant,
)
from kb_mcp.operators.actions.keys import (
    NoSuchKeyError,
    clean_reason,
    issue_key,
    read_new_key,
    revoke_key,
    rotate_key,
    unfreeze_key,
)
from kb_mcp.operators.actions.operations import By, Done, NotDone, Reopening, reset_declines
from kb_mcp.operators.actions.resolve import Resolution, StripeActs
from kb_mcp.operators.reports.views import Views
from kb_mcp.operators.requests import (
    GrantBody,
    InputError,
    NoBody,
    ReasonBody,
    ReopenBody,
    ResolveBody,
    RotateBody,
    UnfreezeBody,
    read_day,
    read_json,
    read_limit,
    read_moment,
    read_object,
    read_overlap,
    read_query,
)
from kb_mcp.operators.sign_in import Access
from kb_mcp.proxy.access.grants import MatchError
from kb_mcp.proxy.access.tokens import Minted
from kb_mcp.proxy.edge.records import Record, Spend, grant_record
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Grant, KeyId, Operation

REVOKE_WAIT_S = 5
PREFIX = "/admin/v1"
Answer = Callable[[Request, str], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class AdminApi:
    """Serves `/admin/v1`; `random_bytes(n)` yields n unpredictable bytes for new keys."""

    views: Views
    access: Access
    random_bytes: Callable[[int], bytes]
    acts: StripeActs | None = None

    def routes(self) -> list[Route]:
        """Return the routes, each behind an operator's token."""
        get: dict[str, Answer] = {
            "/keys": self.list_keys,
            "/keys/{id}": self.show_key,
            "/operations": self.list_operations,
            "/operations/{id}": self.show_operation,
            "/spend": self.list_spend,
            "/audit": self.list_audit,
            "/approvals": self.list_approvals,
            "/grants": self.list_grants,
        }
        post: dict[str, Answer] = {
            "/keys": self.issue,
            "/keys/{id}/revoke": self.revoke,
            "/keys/{id}/unfreeze": self.unfreeze,
            "/keys/{id}/rotate": self.rotate,
            "/approvals/{id}/{verdict:str}": self.decide,
            "/grants": self.add_grant,
            "/grants/{id}/remove": self.remove_grant,
            "/operations/{id}/resolve": self.resolve,
            "/operations/{id}/reopen": self.reopen,
            "/operations/{id}/reset": self.reset,
        }
        return [
            Route(PREFIX + path, self._behind_token(answer), methods=[method])
            for method, table in (("GET", get), ("POST", post))
            for path, answer in table.items()
        ]

    async def list_keys(self, request: Request, _operator: str) -> Response:
        """Answer with every key."""
        read_query(request, ())
        return _list(await self.views.keys())

    async def show_key(self, request: Request, _operator: str) -> Response:
        """Answer with one key."""
        return JSONResponse(await self._key(request))

    async def list_operations(self, request: Request, _operator: str) -> Response:
        """Answer with matching operations, newest first."""
        query = read_query(request, ("state", "customer", "period", "charge", "limit"))
        found = await self.views.operations(
            read_limit(query),
            state=query.get("state"),
            customer_id=query.get("customer"),
            billing_period=query.get("period"),
            charge_id=query.get("charge"),
        )
        return _list(found)

    async def show_operation(self, request: Request, _operator: str) -> Response:
        """Answer with one operation."""
        found = await self.views.operation(request.path_params["id"])
        if found is None:
            raise InputError(404, "operation_unknown", "There is no operation with this id.")
        return JSONResponse(found)

    async def list_spend(self, request: Request, _operator: str) -> Response:
        """Answer with spend against cap."""
        query = read_query(request, ("key", "day"))
        day = read_day(query, self.views.now_ms())
        key_id = query.get("key")
        if key_id is None:
            return _list(await self.views.spend(day))
        return _list(await self.views.spend_of(day, key_id))

    async def list_audit(self, request: Request, _operator: str) -> Response:
        """Answer with matching audit rows, newest first."""
        names = ("key", "customer", "code", "operation", "agent", "session", "subject")
        query = read_query(request, (*names, "since", "until", "limit"))
        filters = {name: query.get(name) for name in names}
        now = self.views.now_ms()
        span = {name: read_moment(query, name, now) for name in ("since", "until")}
        return _list(self.views.audit(read_limit(query), **filters, **span))

    async def list_approvals(self, request: Request, _operator: str) -> Response:
        """Answer with approvals, newest first."""
        query = read_query(request, ("state", "limit"))
        return _list(await self.views.approvals(read_limit(query), query.get("state")))

    async def list_grants(self, request: Request, _operator: str) -> Response:
        """Answer with every grant that is not removed."""
        read_query(request, ())
        found = await self.views.records.grants()
        return _list([grant_record(grant) for grant in found if grant.removed_at is None])

    async def add_grant(self, request: Request, operator: str) -> Response:
        """Let identities stand for a vault key."""
        body = await read_json(request, GrantBody)
        matches = [f"{name}={value}" for name, value in body.match.items()]
        grant = await grant_key(self.views.ledger, self.random_bytes, body, matches, operator)
        return JSONResponse(grant_record(grant), 201)

    async def remove_grant(self, request: Request, operator: str) -> Response:
        """Remove a grant, and say how many sends of its key were under way."""
        await read_json(request, NoBody)
        removed = await ungrant(self.views, request, operator, REVOKE_WAIT_S)
        counts = {"under_way": removed.under_way, "still_under_way": removed.still_under_way}
        return JSONResponse({**grant_record(removed.grant), **counts})

    async def issue(self, request: Request, operator: str) -> Response:
        """Issue a key; the answer alone holds its token."""
        fields = await read_object(request)
        wanted = read_new_key(fields, self.views.mode, self.views.now_ms())
        key, minted = await issue_key(self.views.ledger, wanted, self.random_bytes, operator)
        return await self._minted(key.id, minted)

    async def revoke(self, request: Request, operator: str) -> Response:
        """Revoke a key, and say how many of its sends were under way."""
        await self._key(request)
        body = await read_json(request, ReasonBody)
        revoked = await revoke_key(
            self.views.ledger,
            self.views.records,
            KeyId(request.path_params["id"]),
            clean_reason(body.reason),
            operator,
            REVOKE_WAIT_S,
        )
        counts = {
            "under_way": revoked.under_way,
            "still_under_way": revoked.still_under_way,
        }
        return JSONResponse({**await self._key(request), **counts})

    async def unfreeze(self, request: Request, operator: str) -> Response:
        """Unfreeze a key."""
        await self._key(request)
        reason = clean_reason((await read_json(request, UnfreezeBody)).reason)
        if reason is None:
            raise InputError(400, "parameter_invalid", "Say why the key is unfrozen.", "reason")
        await unfreeze_key(self.views.ledger, KeyId(request.path_params["id"]), reason, operator)
        return JSONResponse(await self._key(request))

    async def rotate(self, request: Request, operator: str) -> Response:
        """Mint a successor; the answer alone holds its token."""
        body = await read_json(request, RotateBody)
        _, minted = await rotate_key(
            self.views.ledger,
            KeyId(request.path_params["id"]),
            read_overlap(body.overlap),
            self.random_bytes,
            operator,
        )
        return await self._minted(minted.id, minted)

    async def decide(self, request: Request, operator: str) -> Response:
        """Approve or deny."""
        verdicts: dict[str, Verdict] = {"approve": "approved", "deny": "denied"}
        verdict = verdicts.get(request.path_params["verdict"])
        if verdict is None:
            raise InputError(404, "path_unknown", "There is nothing at this path.")
        await read_json(request, NoBody)
        decided = await decide_approval(
            self.views.ledger, request.path_params["id"], verdict, operator
        )
        if isinstance(decided, NotDecided):
            raise undecided(decided)
        found = await self.views.approvals(1, approval_id=decided.approval.id)
        return JSONResponse(found[0])

    async def resolve(self, request: Request, operator: str) -> Response:
        """Say what became of an unknown operation."""
        acts, operation = await self._at_stripe(request)
        said = read_resolution(await read_json(request, ResolveBody))
        return await self._done(await acts.resolve(operation, said, operator))

    async def reopen(self, request: Request, operator: str) -> Response:
        """Let a refunded bill be billed once more, or free its days."""
        acts, operation = await self._at_stripe(request)
        reason, said = read_reopening(await read_json(request, ReopenBody))
        return await self._done(await acts.reopen(operation, By(operator, reason), said))

    async def reset(self, request: Request, operator: str) -> Response:
        """Start the count of declines of a bill anew."""
        operation = await find_operation(self.views, request)
        await read_json(request, NoBody)
        declines = await reset_declines(self.views.ledger, operation, By(operator))
        return JSONResponse({"id": operation.id, "declines_forgotten": declines})

    async def _at_stripe(self, request: Request) -> tuple[StripeActs, Operation]:
        return acts_with_stripe(self.acts), await find_operation(self.views, request)

    async def _done(self, outcome: Done | NotDone) -> Response:
        if isinstance(outcome, NotDone):
            raise not_done(outcome)
        return JSONResponse(await self.views.operation(outcome.operation.id))

    async def _key(self, request: Request) -> Record:
        found = await self.views.key(request.path_params["id"])
        if found is None:
            raise unknown_key()
        return found

    async def _minted(self, key_id: str, minted: Minted) -> Response:
        record = await self.views.key(key_id)
        return JSONResponse({**(record or {}), "token": minted.token}, 201)

    def _behind_token(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await answer(request, self.access.bearer(request))

        return endpoint


async def grant_key(
    ledger: Ledger,
    random_bytes: Callable[[int], bytes],
    body: GrantBody,
    matches: Sequence[str],
    operator: str,
) -> Grant:
    """Add the grant that `body` describes, for `matches` like `sub=agent-*`. Raises: InputError."""
    try:
        wanted = new_grant(body.issuer, matches, body.key_id, clean_reason(body.label))
        return await add_grant(ledger, wanted, random_bytes, operator)
    except MatchError as error:
        raise InputError(400, "parameter_invalid", f"{error}.", "match") from None
    except NoSuchKeyError:
        raise unknown_key() from None
    except NotGrantedError as error:
        raise InputError(409, "grant_refused", f"{error}.") from None


async def ungrant(views: Views, request: Request, operator: str, wait_s: int) -> Removed:
    """Remove the grant a path names. Raises: InputError."""
    grant_id = request.path_params["id"]
    try:
        return await remove_grant(views.ledger, views.records, grant_id, operator, wait_s)
    except NoSuchGrantError:
        message = "There is no grant with this id."
        raise InputError(404, "grant_unknown", message) from None


async def find_operation(views: Views, request: Request) -> Operation:
    """Return the operation a path names. Raises: InputError."""
    found = await views.raw_operation(request.path_params["id"])
    if found is None:
        raise InputError(404, "operation_unknown", "There is no operation with this id.")
    return found


def acts_with_stripe(acts: StripeActs | None) -> StripeActs:
    """Return the way to Stripe. Raises: InputError, where this listener has none."""
    if acts is None:
        message = "This listener has no way to Stripe. Use the command line."
        raise InputError(503, "stripe_unavailable", message)
    return acts


def read_resolution(body: ResolveBody) -> Resolution:
    """Return what is said of an unknown operation. Raises: InputError."""
    reason, object_id = clean_reason(body.reason), clean_reason(body.succeeded)
    if (object_id is None) != body.void:
        message = "Give either the object that was made, or void with a reason."
        raise InputError(400, "parameter_invalid", message, "succeeded")
    if body.void and reason is None:
        raise unreasoned()
    return Resolution(object_id, reason)


def read_reopening(body: ReopenBody) -> tuple[str, Reopening]:
    """Return why, and what is reopened. Raises: InputError."""
    reason = clean_reason(body.reason)
    if reason is None:
        raise unreasoned()
    return reason, Reopening(body.amount, body.release)


def unreasoned() -> InputError:
    """Return the error for an act that needs a reason."""
    return InputError(400, "parameter_invalid", "Say why.", "reason")


def not_done(outcome: NotDone) -> InputError:
    """Return the error for an act that changed nothing."""
    return InputError(409, "operation_state", ". ".join(filter(None, [outcome.why, outcome.hint])))


def unknown_key() -> InputError:
    """Return the error for a key that is not there."""
    return InputError(404, "key_unknown", "There is no vault key with this id.")


def undecided(decided: NotDecided) -> InputError:
    """Return the error for an approval that could not be decided."""
    if decided.why == "missing":
        return InputError(404, "approval_unknown", "There is no approval with this id.")
    by = f" by {decided.decided_by}" if decided.decided_by else ""
    message = f"This approval is not pending any more: it is {decided.why}{by}."
    return InputError(409, "approval_not_pending", message)


def _list(data: Sequence[Record | Spend]) -> Response:
    # A list may be of ten thousand keys: msgspec takes a tenth of the time for it.
    body = msgspec.json.encode({"object": "list", "data": data})
    return Response(body, media_type="application/json")
