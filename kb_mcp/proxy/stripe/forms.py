"""Stripe's form encoding, read strictly and written anew.

Floor: wing B, above refusals. Pure. Two readers that disagree about a body are a hole in the
wall, so whatever can be read in two ways is refused, and what goes upstream is rebuilt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote_plus, unquote_to_bytes

from typing_extensions import override

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

MAX_PARAMETERS: Final = 200
MAX_DEPTH: Final = 4
FORM_TYPE: Final = "application/x-www-form-urlencoded"

_NAME = re.compile(r"([a-z][a-z0-9_]{0,63})((?:\[[ -Z\\^-~]{0,64}\])*)")
_SEGMENT = re.compile(r"\[([^\[\]]*)\]")
_INDEX = re.compile(r"0|[1-9][0-9]?")
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTENT_TYPE = re.compile(
    r'application/x-www-form-urlencoded(?:[ \t]*;[ \t]*charset="?utf-8"?)?[ \t]*', re.IGNORECASE
)

_UNQUOTED = re.compile(r"[A-Za-z0-9_.\-~]*")  # what quote_plus leaves as it is
_quoted = lru_cache(maxsize=1024)(quote_plus)  # for names: values differ, they hardly ever do
MAX_PATH: Final = 512
_PREFIX = b"/stripe"
_PLAIN = re.compile(rb"/[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*")
# What is wrong, in the order in which it is looked for; each pattern over the decoded path.
_FAULTS: Final = (
    (re.compile(rb"[\x00-\x1f\x7f]"), "it has control characters"),
    (re.compile(rb"[\x80-\xff]"), "it has characters that are not ASCII"),
    (re.compile(rb"%"), "it is encoded twice"),
    (re.compile(rb"\\"), "it has a backslash"),
    (re.compile(rb";"), "it has matrix parameters"),
    (re.compile(rb"[#?]"), "it has a fragment or a query"),
    (re.compile(rb"(?:^|/)\.{1,2}(?:/|$)"), "it has dot segments"),
    (re.compile(rb"//"), "it has a double slash"),
    (re.compile(rb"[./]$"), "it ends in a slash or a dot"),
)


class Form(dict[str, str]):
    """Flat bracketed names to values, in the order sent; what is read is not changed any more.

    List items carry an index: `expand[]` sent twice is `expand[0]` and `expand[1]`.
    """

    @override
    def __repr__(self) -> str:
        # Values may be personal data, and a repr ends up in logs.
        return f"Form({', '.join(self)})"

    def without(self, *names: str) -> Form:
        """Return the form less `names`."""
        return Form((name, value) for name, value in self.items() if name not in names)

    def with_(self, values: Mapping[str, str]) -> Form:
        """Return the form with `values` added, or put in place of those of the same name."""
        return Form({**self, **values})

    def encode(self) -> bytes:
        """Write the form anew, in order: what goes upstream."""
        return "&".join(
            f"{_quoted(name)}={value if _UNQUOTED.fullmatch(value) else quote_plus(value)}"
            for name, value in self.items()
        ).encode("ascii")

    def canonical(self) -> bytes:
        """Write the form sorted by name: equal for equal forms, whatever their order."""
        return Form(sorted(self.items())).encode()


EMPTY: Final = Form()


def parse_form(body: bytes, content_type: str | None, query: bytes, method: str) -> Form | Refusal:
    """Read the parameters of a request: the body of a POST, the query of anything else."""
    if method == "POST":
        if query:
            return refuse(Code.BODY_INVALID, reason="a POST takes no query string")
        if body and (content_type is None or not _CONTENT_TYPE.fullmatch(content_type)):
            return refuse(Code.BODY_INVALID, reason=f"the content type must be {FORM_TYPE}")
        return _parse(body)
    if body:
        return refuse(Code.BODY_INVALID, reason="only a POST takes a body")
    return _parse(query)


def _parse(octets: bytes) -> Form | Refusal:
    if not octets:
        return EMPTY
    pairs: list[tuple[str, str]] = []
    for piece in octets.split(b"&", MAX_PARAMETERS):
        name, equals, value = piece.partition(b"=")
        if not equals:
            return refuse(Code.BODY_INVALID, reason="every parameter must read name=value")
        read = _decode(name), _decode(value)
        if read[0] is None or read[1] is None:
            return refuse(Code.BODY_INVALID, reason="it must be percent-encoded UTF-8 without NUL")
        pairs.append((read[0], read[1]))
    if len(pairs) > MAX_PARAMETERS:
        return refuse(Code.BODY_INVALID, reason=f"it has more than {MAX_PARAMETERS} parameters")
    return _build(pairs)


def _decode(octets: bytes) -> str | None:
    if _BAD_PERCENT.search(octets):
        return None
    try:
        text = unquote_to_bytes(octets.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _build(pairs: Iterable[tuple[str, str]]) -> Form | Refusal:
    values: dict[str, str] = {}
    # What each name or prefix turned out to be: a value, a map, a list with or without indices.
    kinds: dict[str, str] = {}
    for name, value in pairs:
        segments = _segments(name)
        if segments is None:
            return refuse(Code.PARAMETER_UNKNOWN, param=name)
        flat = segments[0]
        for segment in segments[1:]:
            indexed = "indexed" if _INDEX.fullmatch(segment) else "map"
            kind = indexed if segment else "appended"
            if kinds.setdefault(flat, kind) != kind:
                return refuse(Code.PARAMETER_DUPLICATE, param=flat)
            # Earlier items of this list are its only names: mixing kinds was refused above.
            place = sum(1 for seen in values if seen.startswith(f"{flat}["))
            flat += f"[{place}]" if kind == "appended" else f"[{segment}]"
        if kinds.setdefault(flat, "value") != "value" or flat in values:
            return refuse(Code.PARAMETER_DUPLICATE, param=flat)
        values[flat] = value
    return Form(values)


def _segments(name: str) -> list[str] | None:
    match = _NAME.fullmatch(name)
    segments = [match[1], *_SEGMENT.findall(match[2])] if match else []
    # `a[][b]` does not say where one item ends and the next begins.
    if not segments or len(segments) > MAX_DEPTH + 1 or "" in segments[:-1]:
        return None
    return segments


def canonical_path(raw: bytes) -> str | Refusal:
    """Read the path of a request line, without its query, to the form `/v1/...`.

    One `/stripe` prefix is taken off, and the double slash that a base address with a trailing
    slash makes (`/stripe//v1/charges`, `//v1/charges`). The rest is percent-decoded once.
    """
    if len(raw) > MAX_PATH:
        return refuse(Code.PATH_INVALID, reason="it is too long")
    if not raw.startswith(b"/"):
        return refuse(Code.PATH_INVALID, reason="it must begin with a slash")
    path = raw.removeprefix(_PREFIX) if raw.startswith(_PREFIX + b"/") else raw
    path = path[1:] if path.startswith(b"//v1/") else path
    fault = None if _PLAIN.fullmatch(path) else _fault(path)
    if fault is not None:
        return refuse(Code.PATH_INVALID, reason=fault)
    decoded = unquote_to_bytes(path).decode("ascii")
    if not decoded.startswith("/v1/"):
        return refuse(Code.PATH_UNKNOWN)
    return decoded


def _fault(path: bytes) -> str | None:
    if _BAD_PERCENT.search(path):
        return "it has a percent sign that encodes nothing"
    decoded = unquote_to_bytes(path)
    if decoded.count(b"/") != path.count(b"/"):
        return "it has encoded slashes"
    for pattern, fault in _FAULTS:
        if pattern.search(decoded):
            return fault
    return None if _PLAIN.fullmatch(decoded) else "it has characters that no path of Stripe's has"
