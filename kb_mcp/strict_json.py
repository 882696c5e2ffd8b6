"""JSON read in the one way in which every reader understands it, or refused.

Floor: the ground. Pure. Python's parser keeps the last of two equal names, takes NaN
and Infinity, and hands out halves of surrogate pairs: two readers could see two different bills,
and what was read could not be written again.
"""

from __future__ import annotations

import json
import math
from collections import Counter


class RepeatedNameError(ValueError):
    """A JSON object that holds one name twice."""


class LoneSurrogateError(ValueError):
    """Text that holds half of a surrogate pair, and so cannot be written as UTF-8."""


def read_json(text: str | bytes) -> object:
    """Read `text`.

    Raises: RepeatedNameError, LoneSurrogateError, else ValueError where it is no JSON.
    """
    try:
        value: object = json.loads(
            text, object_pairs_hook=_unrepeated, parse_constant=_finite, parse_float=_finite
        )
        halved = has_surrogate(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if halved:
        raise LoneSurrogateError("a text holds half of a surrogate pair")
    return value


def has_surrogate(value: object) -> bool:
    """Say whether a text in the JSON `value`, a name too, holds half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise RepeatedNameError(f"{twice!r} stands twice in one object")
    return values


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is no JSON: it is infinite, too large or no number")
    return number
