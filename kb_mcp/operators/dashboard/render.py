"""What pages say: templates filled, every text escaped and cleaned on its way out, and stories.

Floor: operators, below the pages. Templates hold no rule; numbers arrive as integers. A story is
an operation's audit rows as sentences, calls that ended alike told together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from kb_mcp.instants import how_many
from kb_mcp.money import Money, format_money
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record

TEXT_MAX = 500
STATIC = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Render a page."""
    return HTMLResponse(_environment().get_template(template).render(**values), status)


async def static(name: str, _request: Request) -> Response:
    """Return a file that pages refer to; `name` is one of STATIC."""
    text = (files(__package__) / "templates" / name).read_text()
    headers = {"cache-control": "private, max-age=300"}
    return Response(text, media_type=STATIC[name], headers=headers)


def sums(amounts: Mapping[str, int]) -> str:
    """Write amounts by currency, the largest number first; they are never summed up."""
    ordered = sorted(amounts.items(), key=lambda each: -each[1])
    return " and ".join(written(amount, currency) for currency, amount in ordered)


def written(amount: int, currency: str | None) -> str:
    """Write an amount in minor units as people read it: `1,073.00 USD`."""
    number, _, code = format_money(Money(amount, currency or "")).partition(" ")
    whole, dot, rest = number.partition(".")
    return f"{int(whole):,}{dot}{rest} {code}".rstrip()


@pass_context
def ago(context: Context, text: str) -> str:
    """Say how long before or after the page's `now_ms` (UTC) a time is, as people say it."""
    seconds = context["now_ms"] // 1000 - int(datetime.fromisoformat(text).timestamp())
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if abs(seconds) >= size:
            count = how_many(abs(seconds) // size, unit)
            return f"{count} ago" if seconds > 0 else f"in {count}"
    return "just now" if seconds >= 0 else "in a moment"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        # Escaped, but not cleaned: cleaning masks keys, and a new key's token is shown once.
        "own": escape,
        "typed": _typed,
        "money": lambda amount, currency: None if amount is None else written(amount, currency),
        "moment": lambda text: None if text is None else f"{text[:10]} {text[11:19]} UTC",
        "sums": sums,
        "ago": ago,
    }
    return environment


def _shown(value: object) -> object:
    # What clients and Stripe wrote is cleaned again here, whatever was done when it was stored.
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean_text(value, TEXT_MAX)
    return value


def _typed(text: str) -> Markup:
    # What an operator typed into a long field goes back into it whole, but for what cannot be seen.
    return escape("".join(each for each in text if each.isprintable() or each in "\n\t"))


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
