"""Names: what makes two requests the same operation.

Floor: above interpret and the shared idempotency keys, below the deciders. Pure. Content beats an
explicit key, an explicit key beats the canonical body; a key that an SDK made up names nothing.
"""

from __future__ import annotations

import hashlib

from msgspec import Struct

from kb_mcp import idempotency
from kb_mcp.periods import Period
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.records import Attempt, NamedBy, Operation
from kb_mcp.proxy.stripe.endpoints import METERED
from kb_mcp.proxy.stripe.forms import FORM_TYPE, parse_form
from kb_mcp.proxy.stripe.interpret import Reading, read_request


class Name(Struct, frozen=True):
    """What an operation is called, by which rule, and the Stripe key of its first generation.

    `older` are names under which an older version may have kept the same operation.
    """

    text: str
    named_by: NamedBy
    upstream_name: str
    older: tuple[str, ...] = ()


def name_of(policy: Policy, reading: Reading) -> Name | Refusal:
    """Name the operation that `reading` intends, by the rules of `policy.idempotency`."""
    key = reading.explicit_key
    if policy.idempotency == "caller":
        # Next to a key in the body, the SDK makes one up for the header.
        sent = key or reading.sent_key
        if sent is None:
            return refuse(Code.IDEMPOTENCY_KEY_REQUIRED)
        name = idempotency.caller_name(sent)
        endpoints = dict.fromkeys((reading.route.endpoint, *METERED))
        older = tuple(idempotency.caller_name_of_endpoint(each, sent) for each in endpoints)
        return Name(name, NamedBy.CALLER, name, older)
    customer, money, period = reading.customer, reading.money, reading.period
    if customer is not None and money is not None and period is not None:
        named = (customer, money.amount, period.label, money.currency, reading.reference)
        derived = idempotency.idempotency_key(*named)
        return Name(derived, NamedBy.CONTENT, derived)
    if policy.idempotency == "strict":
        return refuse(Code.IDEMPOTENCY_KEY_REQUIRED)
    if key is not None:
        name = idempotency.explicit_name(reading.route.endpoint, reading.customer or "", key)
        return Name(name, NamedBy.EXPLICIT, name)
    name = idempotency.body_name(reading.form.canonical(), reading.path)
    return Name(name, NamedBy.BODY, idempotency.occurrence_key(name, 1))


def later_name(older: Operation) -> str:
    """Return the upstream key of the generation after `older`: the next occurrence, or K-rN."""
    if older.named_by is NamedBy.BODY and not older.refunded:
        return idempotency.occurrence_key(older.name, older.generation + 2)
    root, _, suffix = older.upstream_name.partition("-r")
    # One that was adopted by itself may have a higher number than its generation.
    count = max(older.generation, int(suffix) if suffix.isdecimal() else 0)
    return f"{root.split('-', 1)[0]}-r{count + 1}"


def attempt_key(operation: Operation, number: int) -> str:
    """Return the upstream key of the attempt `number` of `operation`: K, K-2, K-3 and so on."""
    return operation.upstream_name if number == 1 else f"{operation.upstream_name}-{number}"


def tally_key(reading: Reading, name: str) -> str:
    """Return under what the declines of this bill are counted: the period, whatever the amount."""
    if reading.customer is not None and reading.period is not None:
        return f"{reading.customer}|{reading.period.label}|{reading.reference or ''}"
    return f"name|{name}"


def caller_keys(secret: bytes, reading: Reading) -> tuple[str, ...]:
    """Return what is kept of the keys that an SDK made up for this customer and endpoint.

    They are 16 bytes of a hash under `secret`, in hex: whoever reads the store learns no key.
    """
    scope = (reading.route.endpoint, reading.customer or "")
    return tuple(
        hashlib.blake2b("\0".join((*scope, key)).encode(), key=secret, digest_size=16).hexdigest()
        for key in reading.made_up_keys
    )


def older_caller_keys(reading: Reading) -> tuple[str, ...]:
    """Return what version 0.1.0 kept of the same keys."""
    scope = f"{reading.route.endpoint}|{reading.customer or ''}"
    return tuple(
        f"{hashlib.sha256(key.encode()).hexdigest()[:16]}|{scope}" for key in reading.made_up_keys
    )


def asked_by(attempt: Attempt) -> Reading | None:
    """Return what the stored request of `attempt` asks for, None where it cannot be read."""
    form = parse_form(attempt.body, FORM_TYPE, b"", "POST")
    reading = form if isinstance(form, Refusal) else read_request("POST", attempt.path, form)
    return None if isinstance(reading, Refusal) else reading


def tally_of(operation: Operation) -> str:
    """Return under what the declines of `operation` are counted."""
    if operation.customer is not None and operation.period is not None:
        return f"{operation.customer}|{operation.period}|{operation.reference or ''}"
    return f"name|{operation.name}"


def columns_of(period: Period | None) -> dict[str, str | None]:
    """Return the fields of an operation that say its period and, in ISO 8601, its days."""
    if period is None:
        return dict.fromkeys(("period", "period_start", "period_end"))
    first, last = period.start.isoformat(), period.end.isoformat()
    return {"period": period.label, "period_start": first, "period_end": last}
