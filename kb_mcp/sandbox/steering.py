"""Steers the sandbox: its clock, its memory, and faults: what goes wrong, for which requests.

Floor: sandbox, ground. These paths are no part of Stripe and need no key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from kb_mcp.sandbox.answers import (
    Answer,
    Json,
    bad_api_key,
    error_answer,
    key_in_use,
    not_permitted,
    rate_limited,
    unknown_url,
)
from kb_mcp.sandbox.resources import refunds
from kb_mcp.sandbox.store import Records, Store

KINDS: Final = frozenset(
    "drop_before drop_after 500_before 500_after delay 429 409 402 403 401 400".split()
)
# These change what is executed, so a replay, which executes nothing, passes them by.
EXECUTION_KINDS: Final = frozenset({"500_before", "500_after", "402"})
_TIMES_MAX: Final = 1_000_000
_DELAY_MS_MAX: Final = 600_000


class ConnectionDropped(ConnectionError):  # noqa: N818  it says what happened
    """The connection ended without an answer, as a fault asked for."""


class FaultError(ValueError):
    """A fault that is not valid; the message says what to send."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` goes wrong with requests that `match` (`METHOD /path`, `*` for anything)."""

    match: str
    kind: str
    times: int = 1
    delay_ms: int = 0

    def applies(self, method: str, path: str) -> bool:
        """Tell whether a request is meant."""
        pattern = re.escape(self.match).replace(r"\*", ".*")
        return re.fullmatch(pattern, f"{method} {path}") is not None


def parse_fault(given: object) -> Fault:
    """Read a fault as it is sent: match, kind, times (default 1), seconds (default 0).

    Raises: FaultError.
    """
    if not isinstance(given, Mapping):
        raise FaultError('A fault is an object: {"match": "POST /v1/charges", "kind": "delay"}.')
    unknown = set(given) - {"match", "kind", "times", "seconds"}
    if unknown:
        raise FaultError(f"Unknown field {min(unknown)!r}: match, kind, times, seconds.")
    match, kind, times = given.get("match", "*"), given.get("kind"), given.get("times", 1)
    seconds = given.get("seconds", 0)
    if not isinstance(match, str) or not (match == "*" or re.fullmatch(r"[A-Z*]+ /.*", match)):
        raise FaultError("'match' is a method and a path, for example 'POST /v1/charges'.")
    if kind not in KINDS:
        raise FaultError(f"'kind' is one of {', '.join(sorted(KINDS))}.")
    if type(times) is not int or not 0 < times <= _TIMES_MAX:
        raise FaultError("'times' is a positive whole number.")
    if type(seconds) not in {int, float} or not 0 <= seconds * 1000 <= _DELAY_MS_MAX:
        raise FaultError(f"'seconds' is a number from 0 to {_DELAY_MS_MAX // 1000}.")
    return Fault(match, kind, times, int(seconds * 1000))


def take_fault(records: Records, method: str, path: str, *, replay: bool) -> Fault | None:
    """Take the first fault that is meant for this request, once off its count."""
    for row in records.run("all_faults"):
        fault = Fault(row["match"], row["kind"], row["times"], row["delay_ms"])
        if fault.applies(method, path) and not (replay and fault.kind in EXECUTION_KINDS):
            query = "spend_fault" if fault.times > 1 else "end_fault"
            records.run(query, row["seq"])
            return fault
    return None


def refusal(kind: str, token: str, key: str | None) -> Answer | None:
    """Return the answer of a fault that refuses before anything begins, or None.

    `token` is the API key the request came with, `key` its idempotency key.
    """
    match kind:
        case "400":
            return error_answer(400, "Invalid request.", code="parameter_invalid", param="amount")
        case "401":
            return bad_api_key(token)
        case "403":
            return not_permitted(token)
        case "409":
            return key_in_use(key or "")
        case "429":
            return rate_limited()
        case _:
            return None


PREFIX: Final = "/_sandbox/"
_ADVANCE_MAX_SECONDS: Final = 10 * 366 * 24 * 60 * 60
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
                return _move(records, given, "refund", refunds.STATUSES, refunds.end_refund)
            case "POST disputes":
                statuses = refunds.DISPUTE_STATUSES
                return _move(records, given, "charge", statuses, refunds.dispute_charge)
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


def _move(
    records: Records,
    given: object,
    kind: str,
    statuses: tuple[str, ...],
    move: Callable[[Records, Json, str], Json],
) -> Answer:
    """Let `move` bring what `given` names, of that kind, into the status that it says."""
    found = None
    if isinstance(given, dict) and set(given) == {kind, "status"} and given["status"] in statuses:
        found = records.find(kind, given[kind]) if isinstance(given[kind], str) else None
    if not isinstance(given, dict) or found is None:
        return _wrong(
            f'Send {{"{kind}": "{kind[:2]}_1", "status": "{"|".join(statuses)}"}}, of one that is '
            "here."
        )
    return Answer(200, move(records, found, given["status"]))


def _clock(records: Records) -> Json:
    return {"now_ms": records.now_ms, "offset_ms": records.offset_ms}


def _faults(records: Records) -> list[Json]:
    names = ("match", "kind", "times")
    return [
        {name: row[name] for name in names} | {"seconds": row["delay_ms"] / 1000}
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
