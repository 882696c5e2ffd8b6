"""The dashboard's forms: what each says to the act of its path, and what is told once it is done.

Floor: operators, beside the pages, above the acts of the admin API. The form of an action was
checked for its CSRF token before. A form for a new key or grant that is not valid is shown again
with what was wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kb_mcp.instants import how_many
from kb_mcp.operators.actions.grants import NotGrantedError
from kb_mcp.operators.actions.keys import (
    NARROWING,
    CapRequiredError,
    KeyRequestError,
    clean_reason,
)
from kb_mcp.operators.actions.operations import note
from kb_mcp.operators.api import Acts, Said
from kb_mcp.operators.dashboard.pages import FormError
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.views import NoSuchKeyError
from kb_mcp.operators.requests import (
    OVERLAP_DEFAULT,
    GrantBody,
    InputError,
    check_body,
    input_error,
)
from kb_mcp.operators.sign_in import Note
from kb_mcp.proxy.access.grants import MatchError
from kb_mcp.proxy.access.policy import CAP_KINDS, RefundCapRules
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import AuditDraft

Fields = Mapping[str, str]
TOKEN_NOTE = "Copy this token now. It is shown this once, and only its hash is kept."  # noqa: S105 a sentence, no password
_UNDER_WAY = "under way when it was: {under_way}; still under way: {still_under_way}."


@dataclass(frozen=True, slots=True)
class Done:
    """Where to go after an action, and what to say there."""

    path: str
    note: Note


Submit = Callable[[str, Fields, str], Awaitable[Done]]


@dataclass(frozen=True, slots=True)
class Form:
    """What is told of the record that comes back, `path` and `text`, and what a form says.

    `waived` is told in place of `text` where only a suspicion was waived.
    """

    path: str
    text: str
    said: Callable[[Fields], Said] = lambda _: {}
    waived: str = ""

    def told(self, record: Record) -> Done:
        """Return where to go, and what to say there."""
        text = self.waived if record.get("waived") else self.text.format_map(record)
        if blocked := record.get("blocked_by"):
            text += f" As things are, the call would move no money: {blocked}."
        return Done(self.path.format_map(record), Note(text, record.get("token")))


def _reason(fields: Fields) -> Said:
    return {"reason": clean_reason(fields.get("reason")) or ""}


def _overlap(fields: Fields) -> Said:
    return {"overlap": fields.get("overlap") or OVERLAP_DEFAULT}


def _resolution(fields: Fields) -> Said:
    said = {name: fields.get(name, "").strip() or None for name in ("succeeded", "reason")}
    return {**said, "void": said["succeeded"] is None}


def _new_key(fields: Fields) -> Said:
    """Return what one of the two forms says: a built-in role and what narrows it, or a policy."""
    given = {name: text.strip() for name, text in fields.items() if text.strip()}
    by_policy = "policy" in fields
    if by_policy and "policy" not in given:
        raise KeyRequestError(["Paste a policy, or choose its file."], "policy")
    texts = ("label", "agent", "expires_at", *(() if by_policy else ("role", *NARROWING)))
    said: dict[str, Any] = {name: given[name] for name in texts if name in given}
    said["uncapped"] = "uncapped" in fields
    if by_policy:
        return {**said, "policy": fields["policy"]}
    refunds = {name: given.get(f"refund_{name}") for name in RefundCapRules.model_fields}
    return {
        **said,
        "caps": {name: given[name] for name in CAP_KINDS if name in given},
        "refund_caps": {name: text for name, text in refunds.items() if text is not None},
    }


_KEY, _OPERATION, _ABOUT = "/keys/{id}", "/operations/{id}", "/operations/{operation_id}"
FORMS = {
    "/keys": Form(_KEY, TOKEN_NOTE, _new_key),
    "/keys/{id}/revoke": Form(_KEY, f"Revoked. Sends {_UNDER_WAY}", _reason),
    "/keys/{id}/unfreeze": Form(_KEY, "Unfrozen.", _reason),
    "/keys/{id}/rotate": Form(_KEY, TOKEN_NOTE, _overlap),
    "/grants/{id}/remove": Form("/grants", f"Removed. Sends of its key {_UNDER_WAY}"),
    "/approvals/{id}/approve": Form(_ABOUT, "This bill was approved by you."),
    "/approvals/{id}/deny": Form(_ABOUT, "This bill was denied by you."),
    "/operations/{id}/resolve": Form(_OPERATION, "Resolved by you.", _resolution),
    "/operations/{id}/reopen": Form(
        _OPERATION,
        "Reopened: the next call may make this {kind} once more.",
        _reason,
        "It is not refunded in full, so this bill stays charged. One other bill that looks like "
        "it may pass.",
    ),
    "/operations/{id}/reset": Form(_OPERATION, "Declines forgotten: {declines_forgotten}."),
}


@dataclass(frozen=True, slots=True)
class Actions:
    """Carries out the forms of the dashboard."""

    acts: Acts
    verifying: Verifying | None = None

    def table(self) -> dict[str, Submit]:
        """Return the actions by path: each takes the id in it, the fields, and who sends them."""
        forms = {path: partial(self._act, path, form) for path, form in FORMS.items()}
        return {**forms, "/grants": self.grant, "/audit/verify": self.verify}

    async def _act(self, path: str, form: Form, named: str, fields: Fields, operator: str) -> Done:
        try:
            return form.told(await self.acts.table()[path](named, form.said(fields), operator))
        except KeyRequestError as error:
            raise FormError(error.errors, error.param.rpartition(".")[2], fields) from None
        except CapRequiredError as error:
            hint = "Give a daily, monthly or customer's cap, or choose to have none."
            raise FormError([f"{error}. {hint}"], "daily", fields) from None

    async def grant(self, _id: str, fields: Fields, operator: str) -> Done:
        """Let identities stand for a key: a claim a line."""
        said = {name: fields.get(name, "").strip() for name in ("issuer", "key_id", "label")}
        body = check_body(GrantBody, {**said, "label": said["label"] or None, "match": {}})
        matches = [line.strip() for line in fields.get("match", "").splitlines() if line.strip()]
        try:
            grant = await self.acts.grant_to(body, matches, operator)
        except (MatchError, NoSuchKeyError, NotGrantedError) as error:
            wrong = input_error(error)
            raise FormError([wrong.message], wrong.param, fields) from None
        return Done("/grants", Note(f"Granted as {grant['id']}."))

    async def verify(self, _id: str, _fields: Fields, operator: str) -> Done:
        """Walk every chain of the audit now."""
        if self.verifying is None:
            message = "This listener cannot verify. Use `kb-mcp audit verify`."
            raise InputError(503, "verify_unavailable", message)
        outcome = await self.verifying.run()
        found = "NOT every chain holds" if outcome.breaks else "every chain holds"
        compared = f"{outcome.heads} of {len(outcome.ends)} were held against an exported head"
        text = f"{how_many(outcome.rows, 'row')} walked: {found}; {compared}."
        row = AuditDraft(kind="admin", decision="verify", agent_id=operator, note=text)
        await note(self.acts.views.ledger, row)
        return Done("/audit", Note(text))
