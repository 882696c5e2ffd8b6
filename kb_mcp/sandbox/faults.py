"""Faults on demand: what goes wrong, for which requests, how often.

Floor: sandbox, ground. Pure but for the store's transaction it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kb_mcp.sandbox.answers import (
    Answer,
    bad_api_key,
    error_answer,
    key_in_use,
    not_permitted,
    rate_limited,
)
from kb_mcp.sandbox.store import Records

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
    """A fault that cannot be meant; the message says what to send."""


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
