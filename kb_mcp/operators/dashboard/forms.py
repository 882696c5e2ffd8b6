"""The dashboard's forms: what each says to the act of its path, and what is told once it is done.

Floor: operators, below the pages, above the acts of the admin API. A form for a new key or grant
that is not valid is shown again with what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kb_mcp.operators.actions.grants import NotGrantedError
from kb_mcp.operators.actions.keys import NARROWING, CapRequiredError, KeyRequestError, clean_reason
from kb_mcp.operators.api import Said
from kb_mcp.operators.reports.views import NoSuchKeyError
from kb_mcp.operators.requests import OVERLAP_DEFAULT, input_error
from kb_mcp.operators.sign_in import Note
from kb_mcp.proxy.access.grants import MatchError, read_matches
from kb_mcp.proxy.access.policy import CAP_KINDS, RefundCapRules
from kb_mcp.proxy.edge.records import Record

Fields = Mapping[str, str]
TOKEN_NOTE = "Copy this token now. It is shown this once, and only its hash is kept."  # noqa: S105 a sentence, no password
_UNDER_WAY = "under way when it was: {under_way}; still under way: {still_under_way}."


# What is wrong with a form that is shown again.
REFUSED = (KeyRequestError, CapRequiredError, MatchError, NoSuchKeyError, NotGrantedError)
_TEXTS = ("role", "policy", "label", "agent", "expires_at", *NARROWING)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A form that was not taken: a line for each reason, the field, and all that was filled in."""

    errors: Sequence[str]
    param: str | None
    form: Fields


def wrong_form(error: Exception, form: Fields) -> Wrong:
    """Return what one of REFUSED says of a form."""
    match error:
        case KeyRequestError():
            return Wrong(error.errors, error.param.rpartition(".")[2], form)
        case CapRequiredError():
            hint = "Give a daily, monthly or customer's cap, or choose to have none."
            return Wrong([f"{error}. {hint}"], "daily", form)
        case _:
            told = input_error(error)
            return Wrong([told.message], told.param, form)


@dataclass(frozen=True, slots=True)
class Form:
    """Where to go once it is done, what to say there of the record, and what the form says.

    `waived` is told in place of `text` where only a suspicion was waived.
    """

    path: str
    text: str
    said: Callable[[Fields], Said] = lambda _: {}
    waived: str = ""

    def note(self, record: Record) -> Note:
        """Return what to say."""
        text = self.waived if record.get("waived") else self.text.format_map(record)
        if blocked := record.get("blocked_by"):
            text += f" As things are, the call would move no money: {blocked}."
        return Note(text, record.get("token"))


def _reason(fields: Fields) -> Said:
    return {"reason": clean_reason(fields.get("reason")) or ""}


def _resolution(fields: Fields) -> Said:
    said = {name: fields.get(name, "").strip() or None for name in ("succeeded", "reason")}
    return {**said, "void": said["succeeded"] is None}


def _new_key(fields: Fields) -> Said:
    """Return what one of the two forms says: a built-in role and what narrows it, or a policy."""
    # A policy stays as it is: its errors name its lines.
    texts = {name: text if name == "policy" else text.strip() for name, text in fields.items()}
    given = {name: text for name, text in texts.items() if text.strip()}
    if "policy" in fields and "policy" not in given:
        raise KeyRequestError(["Paste a policy, or choose its file."], "policy")
    refunds = {name: given.get(f"refund_{name}") for name in RefundCapRules.model_fields}
    return {
        **{name: given[name] for name in _TEXTS if name in given},
        "caps": {name: given[name] for name in CAP_KINDS if name in given},
        "refund_caps": {name: text for name, text in refunds.items() if text is not None},
        "uncapped": "uncapped" in fields,
    }


def _new_grant(fields: Fields) -> Said:
    """Return what the form says: a claim a line."""
    said = {name: fields.get(name, "").strip() for name in ("issuer", "key_id", "label")}
    lines = [line.strip() for line in fields.get("match", "").splitlines() if line.strip()]
    return {**said, "label": said["label"] or None, "match": dict(read_matches(lines))}


_KEY, _OPERATION, _ABOUT = "/keys/{id}", "/operations/{id}", "/operations/{operation_id}"
FORMS = {
    "/keys": Form(_KEY, TOKEN_NOTE, _new_key),
    "/keys/{id}/revoke": Form(_KEY, f"Revoked. Sends {_UNDER_WAY}", _reason),
    "/keys/{id}/unfreeze": Form(_KEY, "Unfrozen.", _reason),
    "/keys/{id}/rotate": Form(
        _KEY, TOKEN_NOTE, lambda fields: {"overlap": fields.get("overlap") or OVERLAP_DEFAULT}
    ),
    "/grants": Form("/grants", "Granted as {id}.", _new_grant),
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
