"""The path of a request, read in exactly one way or refused.

Floor: wing B, above refusals. Pure.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

MAX_PATH: Final = 512

_PREFIX = b"/stripe"
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
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


def canonical_path(raw: bytes) -> str | Refusal:
    """Read the path of a request line, without its query, to the form `/v1/...`.

    One `/stripe` prefix is taken off, and the double slash that a base address with a trailing
    slash makes (`/stripe//v1/charges`, `//v1/charges`). The rest is percent-decoded once.
    """
    if len(raw) > MAX_PATH:
        return refuse(Code.PATH_INVALID, reason="it is too long")
    if not raw.startswith(b"/"):
        return refuse(Code.PATH_INVALID, reason="it must begin with a slash")
    path = raw
    if raw.startswith(_PREFIX + b"/"):
        path = raw.removeprefix(_PREFIX)
    if path.startswith(b"//v1/"):
        path = path[1:]
    if not _PLAIN.fullmatch(path):
        fault = _fault(path)
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
