"""Steers the sandbox: its clock, its memory, and faults: what goes wrong, for which requests.

Floor: sandbox, ground. These paths are no part of Stripe and need no key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from kb_mcp.sandbox.answers import Answer, Json, Rejected, error_answer, mask, refuse_if, said
from kb_mcp.sandbox.resources import charges
from kb_mcp.sandbox.store import Records

# These change what is executed, so a replay, which executes nothing, passes them by.
EXECUTION_KINDS: Final = frozenset({"500_before", "500_after", "402"})


class ConnectionDropped(ConnectionError):  # noqa: N818  it says what happened
    """The connection ended without an answer, as a fault asked for."""


Kind = Literal[
    "drop_before", "drop_after", "500_before", "500_after", "delay",
    "429", "409", "402", "403", "401", "400",
]  # fmt: skip


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """`kind` goes wrong with requests that `match` (`METHOD /path`, `*` for anything)."""

    kind: Kind
    match: Annotated[str, Meta(pattern=r"^(\*|[A-Z*]+ /.*)$")] = "*"
    times: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    seconds: Annotated[float, Meta(ge=0, le=600)] = 0

    @property
    def delay_ms(self) -> int:
        """How long a delay lasts."""
        return round(self.seconds * 1000)


def take_fault(records: Records, method: str, path: str, *, replay: bool) -> Fault | None:
    """Take the first fault that is meant for this request, once off its count."""
    for row in records.run("all_faults"):
        fault = Fault(*row[1:])
        pattern = re.escape(fault.match).replace(r"\*", ".*")
        meant = re.fullmatch(pattern, f"{method} {path}") is not None
        if meant and not (replay and fault.kind in EXECUTION_KINDS):
            records.run("spend_fault" if fault.times > 1 else "end_fault", row["seq"])
            return fault
    return None


_REFUSALS: Final = {
    "401": "bad_api_key",
    "403": "not_permitted",
    "409": "key_in_use",
    "429": "rate_limited",
}


def refuse_as(kind: str, token: str, key: str | None) -> None:
    """Do what a fault says that refuses before anything begins; no other kind does anything.

    `token` is the API key the request came with, `key` its idempotency key. Raises: Rejected.
    """
    refuse_if(kind == "400", "Invalid request.", "parameter_invalid", "amount")
    if kind in _REFUSALS:
        raise Rejected(said(int(kind), _REFUSALS[kind], token=mask(token), key=key or ""))


PREFIX: Final = "/_sandbox/"
_KINDS: Final = ("charge", "customer", "dispute", "payment_intent", "payment_method", "refund")


_EXAMPLES: Final = {
    "POST clock": '{"advance_seconds": N}, a whole number; the clock never runs back.',
    "POST faults": '[{"match": "POST /v1/charges", "kind": "drop_after"}], a list; kinds are '
    f"{', '.join(get_args(Kind))}.",
    "POST refunds": f'{{"refund": "re_1", "status": "{"|".join(charges.STATUSES)}"}}, of one that '
    "is here.",
    "POST disputes": f'{{"charge": "ch_1", "status": "{"|".join(charges.DISPUTE_STATUSES)}"}}, of '
    "one that is here.",
}


class _Advance(Struct):
    advance_seconds: Annotated[int, Meta(ge=0, le=10 * 366 * 24 * 60 * 60)]


def steer(records: Records, method: str, path: str, body: bytes) -> Answer:
    """Serve one request below `/_sandbox/`."""
    asked = f"{method} {path.removeprefix(PREFIX)}"
    try:
        shown = _steered(records, asked, msgspec.json.decode(body) if body else None)
    except msgspec.DecodeError as error:
        example = f" Send {_EXAMPLES[asked]}" if asked in _EXAMPLES else ""
        return error_answer(400, f"{error}.{example}")
    if shown is None:
        return said(404, "unknown_url", method=method, path=path)
    return Answer(200, shown)


def _steered(records: Records, asked: str, given: object) -> Json | None:
    """Return what to show, None for what nobody can ask. Raises: msgspec.DecodeError."""
    match asked:
        case "GET clock":
            return _clock(records)
        case "POST clock":
            records.advance(msgspec.convert(given, _Advance).advance_seconds * 1000)
            return _clock(records)
        case "POST faults":
            for each in msgspec.convert(given, list[Fault]):
                records.run("put_fault", each.match, each.kind, each.times, each.delay_ms)
            return {"faults": _faults(records)}
        case "GET faults":
            return {"faults": _faults(records)}
        case "POST refunds":
            return _moved(records, given, "refund", charges.STATUSES, charges.end_refund)
        case "POST disputes":
            statuses = charges.DISPUTE_STATUSES
            return _moved(records, given, "charge", statuses, charges.dispute_charge)
        case "GET state":
            return _state(records)
        case "POST reset":
            records.clear()
            return {"reset": True}
        case _:
            return None


def _moved(
    records: Records,
    given: object,
    kind: str,
    statuses: tuple[str, ...],
    move: Callable[[Records, Json, str], Json],
) -> Json:
    """Let `move` bring what `given` names, of that kind, into the status that it says."""
    named = msgspec.convert(given, dict[str, str])
    found = records.find(kind, named[kind]) if named.keys() == {kind, "status"} else None
    if found is None or named["status"] not in statuses:
        raise msgspec.ValidationError(f"It names no {kind}, or no status of one")
    return move(records, found, named["status"])


def _clock(records: Records) -> Json:
    return {"now_ms": records.now_ms, "offset_ms": records.offset_ms}


def _faults(records: Records) -> list[Json]:
    return [msgspec.to_builtins(Fault(*row[1:])) for row in records.run("all_faults")]


def _state(records: Records) -> Json:
    objects = {f"{kind}s": records.select(kind) for kind in _KINDS}
    return {
        "counts": {name: len(found) for name, found in objects.items()},
        **objects,
        **_clock(records),
        "faults": _faults(records),
        "request_count": records.number("request_count"),
        "requests": [dict(row) for row in records.run("all_requests")],
    }
