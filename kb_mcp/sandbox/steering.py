"""Steers the sandbox: its clock, its faults, its memory.

Floor: sandbox, ground. These paths are no part of Stripe and need no key.
"""

from __future__ import annotations

import json
from typing import Final

from kb_mcp.sandbox import disputes, refunds
from kb_mcp.sandbox.answers import Answer, Json, unknown_url
from kb_mcp.sandbox.faults import FaultError, parse_fault
from kb_mcp.sandbox.store import Records, Store

PREFIX: Final = "/_sandbox/"
_ADVANCE_MAX_SECONDS: Final = 10 * 366 * 24 * 60 * 60
_HOW: Final = 'Send {{"{}": "{}", "status": "{}"}}, of one that is here.'
_KINDS: Final = {
    "charges": "charge",
    "customers": "customer",
    "disputes": "dispute",
    "payment_intents": "payment_intent",
    "payment_methods": "payment_method",
    "refunds": "refund",
}


def steer(store: Store, method: str, path: str, body: bytes) -> Answer:
    """Serve one request below `/_sandbox/`."""
    try:
        given = json.loads(body) if body else None
    except ValueError:
        return _wrong("The body is not JSON.")
    with store.transaction() as records:
        match f"{method} {path.removeprefix(PREFIX)}":
            case "GET clock":
                return Answer(200, _clock(records))
            case "POST clock":
                return _advance(records, given)
            case "GET faults":
                return Answer(200, {"faults": _faults(records)})
            case "POST faults":
                return _add_faults(records, given)
            case "POST refunds":
                return _end_refund(records, given)
            case "POST disputes":
                return _dispute(records, given)
            case "GET state":
                return Answer(200, _state(records))
            case "POST reset":
                records.clear()
                return Answer(200, {"reset": True})
            case _:
                return unknown_url(method, path).answer


def _advance(records: Records, given: object) -> Answer:
    seconds = given.get("advance_seconds") if isinstance(given, dict) else None
    if type(seconds) is not int or not 0 <= seconds <= _ADVANCE_MAX_SECONDS:
        return _wrong('Send {"advance_seconds": N}, a whole number; the clock never runs back.')
    records.run("add_number", seconds * 1000, "offset_ms")
    return Answer(200, _clock(Records(records.connection, records.host_ms)))


def _add_faults(records: Records, given: object) -> Answer:
    if not isinstance(given, list):
        return _wrong('Send a list: [{"match": "POST /v1/charges", "kind": "drop_after"}].')
    try:
        faults = [parse_fault(item) for item in given]
    except FaultError as error:
        return _wrong(str(error))
    for fault in faults:
        records.run("put_fault", fault.match, fault.kind, fault.times, fault.delay_ms)
    return Answer(200, {"faults": _faults(records)})


def _end_refund(records: Records, given: object) -> Answer:
    named = _named(given, "refund", refunds.STATUSES)
    refund = None if named is None else records.find("refund", named[0])
    if named is None or refund is None:
        return _wrong(_HOW.format("refund", "re_1", "|".join(refunds.STATUSES)))
    refunds.end_refund(records, refund, named[1])
    return Answer(200, refund)


def _dispute(records: Records, given: object) -> Answer:
    named = _named(given, "charge", disputes.STATUSES)
    charge = None if named is None else records.find("charge", named[0])
    if named is None or charge is None:
        return _wrong(_HOW.format("charge", "ch_1", "|".join(disputes.STATUSES)))
    suffix = charge["id"].removeprefix("ch_")
    return Answer(200, disputes.dispute_charge(records, charge, named[1], suffix))


def _named(given: object, name: str, statuses: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the id and the status that `given` says, or None where it says something else."""
    if not isinstance(given, dict) or set(given) != {name, "status"}:
        return None
    named, status = given[name], given["status"]
    return (named, status) if isinstance(named, str) and status in statuses else None


def _clock(records: Records) -> Json:
    return {"now_ms": records.now_ms, "offset_ms": records.offset_ms}


def _faults(records: Records) -> list[Json]:
    return [
        {
            "match": row["match"],
            "kind": row["kind"],
            "times": row["times"],
            "seconds": row["delay_ms"] / 1000,
        }
        for row in records.run("all_faults")
    ]


def _state(records: Records) -> Json:
    objects = {name: records.everything(kind) for name, kind in _KINDS.items()}
    return {
        "counts": {name: len(found) for name, found in objects.items()},
        **objects,
        **_clock(records),
        "faults": _faults(records),
        "request_count": records.number("request_count"),
        "requests": [dict(row) for row in records.run("all_requests")],
    }


def _wrong(message: str) -> Answer:
    return Answer(400, {"error": {"message": message, "type": "invalid_request_error"}})
