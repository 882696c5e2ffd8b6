"""Reading JSON that Stripe wrote: an object, or nothing.

Floor: the bottom of wing B. Pure. An answer is read after money may have moved, so whatever is
wrong with it (depth, size, encoding, numbers, half a surrogate pair) must end as "cannot be read"
and never as an exception.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

DEPTH_MAX = 64
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
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
    """Return `value` where it is an integer from 0 up; a boolean or a float is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def next_cursor(items: list[Any], seen: set[str]) -> str | None:
    """Return the id after which a list goes on; None where the list would not get further.

    `seen` holds the ids that ended the pages before. A list that ends on one of them again goes
    round in a circle.
    """
    last = items[-1].get("id") if items and isinstance(items[-1], dict) else None
    if not isinstance(last, str) or last in seen:
        return None
    seen.add(last)
    return last


def _is_deeper(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in value)
