"""Which characters a text for people may hold, and what the others are called.

Floor: wing A, at the bottom. Pure. Refused are those that change how the text around them is
shown or read: controls, line separators, bidi embeddings, overrides and isolates. Halves of
surrogate pairs are no text at all. Everything else is writing, in scripts and symbols newer than
this Python too.
Source: unicode.org/reports/tr9 (bidirectional formatting characters).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def name_forbidden(text: str) -> str | None:
    """Name the first character of `text` that may not stand in it, or return None."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return None
    return f"U+{ord(found[0]):04X} ({unicodedata.name(found[0], 'a control character')})"


def without_forbidden(text: str) -> str:
    """Return `text` with a blank in place of each character that may not stand in it."""
    return _FORBIDDEN.sub(" ", text)
