"""An operation's story: its audit rows as sentences, calls that ended alike told together.

Floor: operators, below the pages. Pure. Templates escape what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kb_mcp.operators.dashboard.render import written
from kb_mcp.proxy.edge.records import Record

NAMED_MAX = 3
_ADMIN = {
    "approve": "approved it",
    "deny": "denied it",
    "resolve_look": "looked for it at Stripe and found nothing; a second look is needed to void it",
    "resolve_void": "said that nothing happened: it is void, and its reservation was released",
    "resolve_succeeded": "settled it with the object that was found at Stripe",
    "reopen": "reopened it: it may be made once more",
    "waive": "waived a suspicion: this bill stays charged, one other that looks like it may pass",
    "release": "released its days for other bills",
    "reset": "forgot its declines",
    "cancel": "told Stripe to cancel it",
    "forget": "erased the stored answers of its customer",
    "adopt": "took it over from Stripe",
}
# The tone and the words of each state.
_OUTCOMES = {
    "succeeded": ("good", "{made} was made"),
    "failed": ("bad", "it came to nothing, and the reservation was released"),
    "unknown": ("wait", "nobody knows what became of it, and {money} stay reserved"),
    "voided": ("plain", "nothing was made, and the reservation was released"),
    "reserved": ("plain", "{money} stay reserved"),
    "awaiting_approval": ("plain", "it waits for an approval"),
}
_CALLS, _ENDINGS = frozenset({"decision", "refusal"}), frozenset({"outcome", "recovery"})


@dataclass(frozen=True, slots=True)
class Sentence:
    """What happened at `time`, RFC 3339; `tone` is good, wait, bad or plain; `until` the last."""

    time: str
    text: str
    tone: str = "plain"
    until: str | None = None


def tell(
    operation: Record, trail: Sequence[Record], labels: Mapping[str, str], refunds: Sequence[Record]
) -> list[Sentence]:
    """Return the story that the audit rows in `trail`, oldest first, tell of `operation`.

    `labels` are what people call keys, by id; `refunds` the operations that gave it back.
    """
    joined = {row["request_id"] for row in trail if row["decision"] == "replay"}
    # Who waited is told with the answer that it got.
    rows = [row for row in trail if not (row["decision"] == "join" and row["request_id"] in joined)]
    story: list[Sentence] = []
    made = False
    for _, group in groupby(rows, _alike):
        same = list(group)
        row, until = same[0], same[-1]["time"] if len(same) > 1 else None
        if row["kind"] in _CALLS:
            text, tone = _call(operation, same, labels, again=bool(story), made=made)
        else:
            text, tone = _event(operation, row)
        story.append(Sentence(row["time"], text, tone, until))
        if row["kind"] in _ENDINGS:
            made = row["decision"] == "succeeded"
    story += [_given_back(each, labels) for each in refunds]
    return sorted(story, key=lambda each: each.time)


def _given_back(refund: Record, labels: Mapping[str, str]) -> Sentence:
    key, money = labels.get(refund["key_id"], refund["key_id"]), _money(refund)
    text = f"A refund of {money} was asked for with key {key}: it is {refund['state']}."
    if refund["state"] == "succeeded":
        text = f"{money} of it were refunded with key {key}: {refund.get('refund_id')}."
    return Sentence(refund["created_at"], text, "wait")


def _alike(row: Record) -> object:
    if row["kind"] in _CALLS and row["decision"] != "proceed":
        return row["decision"], row["code"]
    return row["id"]


def _event(operation: Record, row: Record) -> tuple[str, str]:
    if row["kind"] in _ENDINGS:
        return _outcome(operation, row)
    if row["kind"] == "admin":
        did = _ADMIN.get(row["decision"], row["decision"])
        reason = f" ({row['note']})" if row["note"] else ""
        return f"{row['agent_id'] or 'An operator'} {did}{reason}.", "plain"
    if row["kind"] == "alert" and row["decision"] == "raise":
        return f"An alert was raised: {row['note']}", "wait"
    said = " ".join(filter(None, [row["kind"], row["decision"], row["code"], row["note"]]))
    return f"{said[:1].upper()}{said[1:]}.", "plain"


def _call(
    operation: Record, rows: Sequence[Record], labels: Mapping[str, str], *, again: bool, made: bool
) -> tuple[str, str]:
    row, times = rows[0], f"{len(rows)} times " if len(rows) > 1 else ""
    asked = f"{'Asked again' if again else 'Asked for'} {times}by {_who(rows, labels)}"
    money = _money(row, operation)
    match row["decision"]:
        case "proceed" if again:
            sent = f"reserved and sent to Stripe (attempt {row['attempt']})"
            return f"{asked}; {money} were {sent}.", "plain"
        case "proceed":
            return f"{asked}: {money} were reserved, and the request was sent to Stripe.", "plain"
        case "replay":
            found = operation.get("refund_id" if operation["kind"] == "refund" else "charge_id")
            first = f"the first {operation['kind']}, {found}"
            answer = first if made and found else "what Stripe had answered"
            each = "each was answered" if times else "answered"
            return f"{asked}; {each} with {answer}. Nothing was sent.", "good"
        case "join":
            return f"{asked}, while it was under way; waited for its outcome.", "plain"
        case _ if row["code"] != "approval_required":
            return f"{asked} and refused: {row['code']}. Nothing was sent.", "bad"
        case _ if (row["note"] or "").endswith(", denied"):
            return f"{asked}, after the denial. Nothing was sent.", "bad"
        case _:
            return f"{asked}: {money} need an operator's approval. Nothing was sent.", "wait"


def _outcome(operation: Record, row: Record) -> tuple[str, str]:
    begun, state = f"Stripe answered with {row['stripe_status']}", row["decision"] or ""
    if row["kind"] == "recovery":
        begun = "Recovery read Stripe's records"
    elif row["stripe_status"] is None:
        begun = "No answer came from Stripe"
    code = f" ({row['code']})" if row["code"] and row["code"] != "outcome_unknown" else ""
    made = f"{operation['kind']} {row['object_id']}" if row["object_id"] else operation["kind"]
    tone, rest = _OUTCOMES.get(state, ("plain", state.replace("_", " ")))
    told = rest.format(made=made, money=_money(row, operation))
    note = f" {row['note']}" if row["note"] else ""
    return f"{begun}{code}: {told}.{note}", tone


def _who(rows: Iterable[Record], labels: Mapping[str, str]) -> str:
    """Name the callers, each once, with how often where there are several."""
    callers: dict[tuple[str | None, str | None], list[Record]] = {}
    for row in rows:
        callers.setdefault((row["agent_id"], row["key_id"]), []).append(row)
    told = []
    for (agent, key_id), its in callers.items():
        key = f"key {labels.get(key_id or '', key_id or 'unknown')}"
        name = f"{agent} with {key}" if agent else key
        rest = [f"{len(its)} times"] if len(callers) > 1 and len(its) > 1 else []
        sessions = _named(row["session_id"] for row in its)
        if sessions:
            rest.append(f"session{'s' if len(sessions) > 1 else ''} {_listed(sessions)}")
        if subjects := _named(row["subject"] for row in its):
            rest.append(f"for {_listed(subjects)}")
        told.append(f"{name} ({', '.join(rest)})" if rest else name)
    return _listed(told)


def _named(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))


def _listed(names: Sequence[str]) -> str:
    """List names: the first NAMED_MAX of them, and how many more there are."""
    more = len(names) - NAMED_MAX
    shown = [*names[:NAMED_MAX], *([f"{more} more"] if more > 0 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _money(*rows: Record) -> str:
    """Write the amount of the first of `rows` that has one."""
    told = (
        written(row["amount"], row["currency"]) for row in rows if row["amount"] and row["currency"]
    )
    return next(told, "it")
