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
_OUTCOMES = {
    "succeeded": "{made} was made",
    "failed": "it came to nothing, and the reservation was released",
    "unknown": "nobody knows what became of it, and {money} stay reserved",
    "voided": "nothing was made, and the reservation was released",
    "reserved": "{money} stay reserved",
    "awaiting_approval": "it waits for an approval",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """What happened at `time`, RFC 3339; `tone` is good, wait, bad or plain; `until` the last."""

    time: str
    text: str
    tone: str = "plain"
    until: str | None = None


def tell(
    operation: Record,
    trail: Sequence[Record],
    labels: Mapping[str, str],
    *,
    refunds: Sequence[Record] = (),
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
        story.append(_sentence(operation, same, labels, again=bool(story), made=made))
        if same[-1]["kind"] in {"outcome", "recovery"}:
            made = same[-1]["decision"] == "succeeded"
    story += [_given_back(each, labels) for each in refunds]
    return sorted(story, key=lambda each: each.time)


def _given_back(refund: Record, labels: Mapping[str, str]) -> Sentence:
    key = labels.get(refund["key_id"], refund["key_id"])
    done = f"{_of(refund)} of it were refunded with key {key}: {refund.get('refund_id')}."
    asked = f"A refund of {_of(refund)} was asked for with key {key}: it is {refund['state']}."
    return Sentence(refund["created_at"], done if refund["state"] == "succeeded" else asked, "wait")


def _alike(row: Record) -> object:
    if row["kind"] in {"decision", "refusal"} and row["decision"] != "proceed":
        return row["decision"], row["code"]
    return row["id"]


def _sentence(
    operation: Record,
    rows: Sequence[Record],
    labels: Mapping[str, str],
    *,
    again: bool,
    made: bool,
) -> Sentence:
    row = rows[0]
    if row["kind"] in {"decision", "refusal"}:
        text, tone = _call(operation, rows, labels, again=again, made=made)
    elif row["kind"] in {"outcome", "recovery"}:
        text, tone = _outcome(operation, row)
    elif row["kind"] == "admin":
        did = _ADMIN.get(row["decision"], row["decision"])
        reason = f" ({row['note']})" if row["note"] else ""
        text, tone = f"{row['agent_id'] or 'An operator'} {did}{reason}.", "plain"
    elif row["kind"] == "alert" and row["decision"] == "raise":
        text, tone = f"An alert was raised: {row['note']}", "wait"
    else:
        said = " ".join(filter(None, [row["kind"], row["decision"], row["code"], row["note"]]))
        text, tone = f"{said[:1].upper()}{said[1:]}.", "plain"
    return Sentence(row["time"], text, tone, rows[-1]["time"] if len(rows) > 1 else None)


def _call(
    operation: Record,
    rows: Sequence[Record],
    labels: Mapping[str, str],
    *,
    again: bool,
    made: bool,
) -> tuple[str, str]:
    row, times = rows[0], f"{len(rows)} times " if len(rows) > 1 else ""
    asked = f"{'Asked again' if again else 'Asked for'} {times}by {_who(rows, labels)}"
    money = _money(row["amount"], row["currency"]) or _of(operation)
    match row["decision"]:
        case "proceed" if again:
            return (
                f"{asked}; {money} were reserved and sent to Stripe (attempt {row['attempt']}).",
                "plain",
            )
        case "proceed":
            return f"{asked}: {money} were reserved, and the request was sent to Stripe.", "plain"
        case "replay":
            first = f"the first {operation['kind']}, {_made(operation)}"
            each = "each was answered" if times else "answered"
            answer = first if made and _made(operation) else "what Stripe had answered"
            return f"{asked}; {each} with {answer}. Nothing was sent.", "good"
        case "join":
            return f"{asked}, while it was under way; waited for its outcome.", "plain"
        case _ if row["code"] == "approval_required":
            if (row["note"] or "").endswith(", denied"):
                return f"{asked}, after the denial. Nothing was sent.", "bad"
            return f"{asked}: {money} need an operator's approval. Nothing was sent.", "wait"
        case _:
            return f"{asked} and refused: {row['code']}. Nothing was sent.", "bad"


def _outcome(operation: Record, row: Record) -> tuple[str, str]:
    if row["kind"] == "recovery":
        begun = "Recovery read Stripe's records"
    elif row["stripe_status"] is None:
        begun = "No answer came from Stripe"
    else:
        begun = f"Stripe answered with {row['stripe_status']}"
    code = f" ({row['code']})" if row["code"] and row["code"] != "outcome_unknown" else ""
    made = f"{operation['kind']} {row['object_id']}" if row["object_id"] else operation["kind"]
    money = _money(row["amount"], row["currency"]) or _of(operation)
    state = row["decision"] or ""
    rest = _OUTCOMES.get(state, state.replace("_", " ")).format(made=made, money=money)
    note = f" {row['note']}" if row["note"] else ""
    tone = {"succeeded": "good", "unknown": "wait", "failed": "bad"}.get(state, "plain")
    return f"{begun}{code}: {rest}.{note}", tone


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
        rest += _some("session", [row["session_id"] for row in its])
        rest += _some("for", [row["subject"] for row in its])
        told.append(f"{name} ({', '.join(rest)})" if rest else name)
    return _listed(told)


def _some(what: str, names: Iterable[str | None]) -> list[str]:
    found = list(dict.fromkeys(filter(None, names)))
    plural = "s" if what == "session" and len(found) > 1 else ""
    return [f"{what}{plural} {_listed(found)}"] if found else []


def _listed(names: Sequence[str]) -> str:
    """List names: the first NAMED_MAX of them, and how many more there are."""
    more = len(names) - NAMED_MAX
    shown = [*names[:NAMED_MAX], *([f"{more} more"] if more > 0 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _made(operation: Record) -> str | None:
    made = operation.get("refund_id") if operation["kind"] == "refund" else operation["charge_id"]
    return None if made is None else str(made)


def _of(operation: Record) -> str:
    return _money(operation["amount"], operation["currency"]) or "it"


def _money(amount: int | None, currency: str | None) -> str | None:
    return None if not amount or not currency else written(amount, currency)
