"""Reading JSON that Stripe wrote: an object, or nothing.

Floor: the bottom of wing B. Pure. An answer is read after money may have moved, so whatever is
wrong with it (depth, size, encoding, numbers, half a surrogate pair) must end as "cannot be read"
and never as an exception.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

DEPTH_MAX = 64
# More digits than any amount at Stripe, and few enough that sums of them fit every store.
AMOUNT_MAX = 10**15
LAST_SECOND = 4_102_444_800  # 2100-01-01
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_CURRENCY = re.compile(r"[A-Za-z]{3}")
_WORD = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


def parse_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `body`, or None where it is no object that can be kept."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or _is_deeper(parsed, DEPTH_MAX):
        return None
    return parsed


def object_id(value: object) -> str | None:
    """Return `value` where it can be the id of an object: it goes into paths and into the store."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def word(value: object) -> str | None:
    """Return `value` where it is a code or a status: a short word, safe to store."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def whole(value: object) -> int | None:
    """Return `value` where it is an amount that can be: a boolean or a float is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= AMOUNT_MAX else None


def created_ms(value: object) -> int | None:
    """Return when an object was created, in ms; None where it says no second of our time."""
    seconds = whole(value)
    return seconds * 1000 if seconds is not None and seconds <= LAST_SECOND else None


def currency(value: object) -> str | None:
    """Return `value` where it is a currency's code, in lower case."""
    return value.lower() if isinstance(value, str) and _CURRENCY.fullmatch(value) else None


def _is_deeper(value: object, levels: int) -> bool:
    """Say whether objects and lists stand in each other more than `levels` deep."""
    inside: list[Any] = [value]
    for _ in range(levels + 1):
        inside = [each for each in inside if isinstance(each, dict | list)]
        if not inside:
            return False
        inside = [
            child
            for each in inside
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def marks(item: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of an object; what is no text is left out."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def mark_of(item: Mapping[str, Any]) -> str | None:
    """Return the upstream key that an object of ours is marked with."""
    return marks(item).get("keybrake_attempt")


def object_names(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids under which an operation may know an object: its own, or its intent's.

    A refund names the intent of its charge, which is not its own.
    """
    intent = item.get("payment_intent")
    if item.get("object", "charge") == "charge" and isinstance(intent, str):
        return (str(item["id"]), intent)
    return (str(item["id"]),)
