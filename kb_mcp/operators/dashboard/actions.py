"""The dashboard's actions: what an operator does, each one audited in their name.

Floor: operators, beside the pages. The form of an action was checked for its CSRF token before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kb_mcp.operators.actions.approvals import NotDecided, Verdict, decide_approval
from kb_mcp.operators.actions.keys import (
    CapRequiredError,
    clean_reason,
    issue_key,
    revoke_key,
    rotate_key,
    unfreeze_key,
)
from kb_mcp.operators.actions.operations import By, NotDone, Reopening, note, reset_declines
from kb_mcp.operators.actions.operations import Done as Acted
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.api import (
    acts_with_stripe,
    find_operation,
    grant_key,
    not_done,
    read_resolution,
    undecided,
    ungrant,
    unknown_key,
    unreasoned,
)
from kb_mcp.operators.dashboard.key_forms import Fields, FormError, read_key_form
from kb_mcp.operators.dashboard.pages import Visit
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.views import Views
from kb_mcp.operators.requests import (
    OVERLAP_DEFAULT,
    GrantBody,
    InputError,
    ResolveBody,
    check_body,
    read_overlap,
)
from kb_mcp.operators.sign_in import Note
from kb_mcp.proxy.ledger.records import AuditDraft, KeyId, Operation

REVOKE_WAIT_S = 3
TOKEN_NOTE = "Copy this token now. It is shown this once, and only its hash is kept."  # noqa: S105 a sentence, no password


@dataclass(frozen=True, slots=True)
class Done:
    """Where to go after an action, and what to say there."""

    path: str
    note: Note


@dataclass(frozen=True, slots=True)
class Actions:
    """Carries out the forms of the dashboard."""

    views: Views
    random_bytes: Callable[[int], bytes]
    acts: StripeActs | None = None
    verifying: Verifying | None = None

    def table(self) -> dict[str, Callable[[Visit, Fields], Awaitable[Done]]]:
        """Return the actions by path."""
        return {
            "/keys": self.issue,
            "/keys/{id}/revoke": self.revoke,
            "/keys/{id}/unfreeze": self.unfreeze,
            "/keys/{id}/rotate": self.rotate,
            "/grants": self.grant,
            "/grants/{id}/remove": self.ungrant,
            "/approvals/{id}/approve": self.approve,
            "/approvals/{id}/deny": self.deny,
            "/operations/{id}/resolve": self.resolve,
            "/operations/{id}/reopen": self.reopen,
            "/operations/{id}/reset": self.reset,
            "/audit/verify": self.verify,
        }

    async def issue(self, visit: Visit, fields: Fields) -> Done:
        """Issue a key from one of the two forms."""
        wanted = read_key_form(fields, self.views.mode, self.views.now_ms())
        try:
            key, minted = await issue_key(
                self.views.ledger, wanted, self.random_bytes, visit.session.operator
            )
        except CapRequiredError as error:
            hint = "Give a daily, monthly or customer's cap, or choose to have none."
            raise FormError([f"{error}. {hint}"], "daily", fields) from None
        return Done(f"/keys/{key.id}", Note(TOKEN_NOTE, minted.token))

    async def revoke(self, visit: Visit, fields: Fields) -> Done:
        """Revoke a key now."""
        key_id = await self._known(visit)
        revoked = await revoke_key(
            self.views.ledger,
            self.views.records,
            key_id,
            clean_reason(fields.get("reason")),
            visit.session.operator,
            REVOKE_WAIT_S,
        )
        text = (
            f"Revoked. Sends under way when it was: {revoked.under_way}; "
            f"still under way: {revoked.still_under_way}."
        )
        return Done(f"/keys/{key_id}", Note(text))

    async def unfreeze(self, visit: Visit, fields: Fields) -> Done:
        """Unfreeze a key; a reason is required."""
        key_id = await self._known(visit)
        reason = clean_reason(fields.get("reason"))
        if reason is None:
            raise InputError(400, "parameter_invalid", "Say why the key is unfrozen.", "reason")
        await unfreeze_key(self.views.ledger, key_id, reason, visit.session.operator)
        return Done(f"/keys/{key_id}", Note("Unfrozen."))

    async def rotate(self, visit: Visit, fields: Fields) -> Done:
        """Mint the successor of a key."""
        key_id = await self._known(visit)
        overlap_ms = read_overlap(fields.get("overlap") or OVERLAP_DEFAULT)
        successor, minted = await rotate_key(
            self.views.ledger, key_id, overlap_ms, self.random_bytes, visit.session.operator
        )
        return Done(f"/keys/{successor.id}", Note(TOKEN_NOTE, minted.token))

    async def grant(self, visit: Visit, fields: Fields) -> Done:
        """Let identities stand for a key: a claim a line."""
        given = {name: fields.get(name, "").strip() for name in ("issuer", "key_id", "label")}
        matches = [line.strip() for line in fields.get("match", "").splitlines() if line.strip()]
        body = check_body(GrantBody, {**given, "label": given["label"] or None, "match": {}})
        ledger, who = self.views.ledger, visit.session.operator
        try:
            grant = await grant_key(ledger, self.random_bytes, body, matches, who)
        except InputError as error:
            raise FormError([error.message], error.param, fields) from None
        return Done("/grants", Note(f"Granted as {grant.id}."))

    async def ungrant(self, visit: Visit, _fields: Fields) -> Done:
        """Remove a grant now."""
        removed = await ungrant(self.views, visit.request, visit.session.operator, REVOKE_WAIT_S)
        text = (
            f"Removed. Sends of its key under way when it was: {removed.under_way}; "
            f"still under way: {removed.still_under_way}."
        )
        return Done("/grants", Note(text))

    async def approve(self, visit: Visit, _fields: Fields) -> Done:
        """Let one bill pass."""
        return await self._decide(visit, "approved")

    async def deny(self, visit: Visit, _fields: Fields) -> Done:
        """Refuse one bill."""
        return await self._decide(visit, "denied")

    async def resolve(self, visit: Visit, fields: Fields) -> Done:
        """Say what became of an unknown operation."""
        operation = await find_operation(self.views, visit.request)
        given = {name: fields.get(name, "").strip() or None for name in ("succeeded", "reason")}
        body = check_body(ResolveBody, {**given, "void": given["succeeded"] is None})
        who = visit.session.operator
        outcome = await acts_with_stripe(self.acts).resolve(operation, read_resolution(body), who)
        return _done(outcome, operation, "Resolved by you.")

    async def reopen(self, visit: Visit, fields: Fields) -> Done:
        """Let a refunded bill be billed once more."""
        operation = await find_operation(self.views, visit.request)
        reason = clean_reason(fields.get("reason"))
        if reason is None:
            raise unreasoned()
        by = By(visit.session.operator, reason)
        outcome = await acts_with_stripe(self.acts).reopen(operation, by, Reopening())
        return _done(outcome, operation, "Reopened: the next call may bill it once more.")

    async def reset(self, visit: Visit, _fields: Fields) -> Done:
        """Start the count of declines of a bill anew."""
        operation = await find_operation(self.views, visit.request)
        by = By(visit.session.operator)
        declines = await reset_declines(self.views.ledger, operation, by)
        return Done(f"/operations/{operation.id}", Note(f"Forgot {declines} declines."))

    async def verify(self, visit: Visit, _fields: Fields) -> Done:
        """Walk every chain of the audit now."""
        if self.verifying is None:
            message = "This listener cannot verify. Use `kb-mcp audit verify`."
            raise InputError(503, "verify_unavailable", message)
        verified = await self.verifying.run()
        found = "every chain holds" if verified.holds else "NOT every chain holds"
        text = f"{verified.outcome.rows} rows walked: {found}."
        row = AuditDraft(
            kind="admin", decision="verify", agent_id=visit.session.operator, note=text
        )
        await note(self.views.ledger, row)
        return Done("/audit", Note(text))

    async def _decide(self, visit: Visit, verdict: Verdict) -> Done:
        approval_id = visit.request.path_params["id"]
        decided = await decide_approval(
            self.views.ledger, approval_id, verdict, visit.session.operator
        )
        if isinstance(decided, NotDecided):
            raise undecided(decided)
        where = f"/operations/{decided.approval.operation_id}"
        return Done(where, Note(f"This bill was {verdict} by you."))

    async def _known(self, visit: Visit) -> KeyId:
        found = await self.views.key(visit.request.path_params["id"])
        if found is None:
            raise unknown_key()
        return KeyId(found["id"])


def _done(outcome: Acted | NotDone, operation: Operation, text: str) -> Done:
    if isinstance(outcome, NotDone):
        raise not_done(outcome)
    return Done(f"/operations/{operation.id}", Note(text))
