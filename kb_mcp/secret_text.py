"""A secret as people and consoles write it: plain, quoted, with a line end, or a member of JSON.

Floor: the ground. Pure. What is understood is the one secret that the text can mean; everything
else is refused. No message holds a part of a value.
"""

from __future__ import annotations

import json
import re
from typing import Any

# A member's name may be shown, unless somebody put a secret there.
_PLAIN_NAME = re.compile(r"(?!(?:vk|rk|sk|pk)_)[A-Za-z][A-Za-z0-9_.-]{0,39}")


class SecretTextError(ValueError):
    """The text holds no such secret, or several; the message is a verb phrase, like "is empty"."""


def read_secret(text: str, form: re.Pattern[str], what: str, member: str | None = None) -> str:
    """Return the secret in `text` that has `form`; `what` names it, like "a vault key".

    `member` is the member of a JSON object to take; without it, the only one that has the form.
    Secrets Manager's console writes `{"token": "vk_…"}`.
    Raises: SecretTextError.
    """
    plain = _unquoted(text)
    if plain.startswith("{"):
        found = _member(plain, form, what, member)
    elif member is not None:
        raise SecretTextError("is no JSON object, so nothing can be taken out of it by name")
    else:
        found = plain
    if not form.fullmatch(found):
        raise SecretTextError(f"is not {what}")
    return found


def _unquoted(text: str) -> str:
    plain = text.strip("\ufeff \t\r\n")
    if len(plain) >= 2 and plain[0] == plain[-1] and plain[0] in "\"'":
        return plain[1:-1].strip()
    return plain


def _member(text: str, form: re.Pattern[str], what: str, member: str | None) -> str:
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, _Pairs):
        raise SecretTextError("is JSON that cannot be read")
    named = {name: _unquoted(value) for name, value in pairs if isinstance(value, str)}
    if len({name for name, _ in pairs}) != len(pairs):
        raise SecretTextError("is JSON that has one name twice")
    if member is not None:
        if member not in named:
            raise SecretTextError(f"is JSON without a text named {_shown(member)}")
        return named[member]
    fitting = [name for name, value in named.items() if form.fullmatch(value)]
    if not fitting:
        raise SecretTextError(f"is JSON without {what} in it")
    if len({named[name] for name in fitting}) > 1:
        raise SecretTextError(f"is JSON with several: {', '.join(map(_shown, fitting))}")
    return named[fitting[0]]


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, repeated names included."""


def _shown(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else "(a name that is not shown)"
