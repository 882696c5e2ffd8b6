"""Refusals as values, and how they are written in Stripe's error shape.

Floor: wing B, above the table of codes and sentences (refusal_codes). Pure. What no answer and no
record may hold is masked here: Stripe's error texts name the key and the account, and a
`client_secret` would let its holder confirm an intent elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct, field

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.errors.refusal_codes import WORDING, Code

_KEYS = re.compile(rb"\b(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9_*.\xe2\x80\xa2]{4,}")
# As clients send them by mistake, in a path, a name or a header: underscores may be encoded.
_SECRETS = re.compile(
    r"(?:vk|sk|rk)(?:_|%5f)(?:test|live)(?:_|%5f)[a-z0-9_%]{6,}|whsec(?:_|%5f)[a-z0-9_%]{6,}",
    re.IGNORECASE,
)
_ACCOUNTS = re.compile(rb"\bacct_[A-Za-z0-9]+")
_CLIENT_SECRET = re.compile(rb'("client_secret"\s*:\s*)"[^"]*"')
Fact = str | int | bool | None | tuple[str, ...]
NO_FACTS: Final[Mapping[str, Fact]] = MappingProxyType({})
QUOTE_LIMIT: Final = 64
_AMOUNTS = frozenset({"cap", "left", "amount"})


def scrub_error(body: bytes, upstream_key: str) -> bytes:
    """Return an error body without key or account text; `upstream_key` is our own."""
    if upstream_key:
        body = body.replace(upstream_key.encode(), b"[key]")
    return _ACCOUNTS.sub(b"[account]", _KEYS.sub(b"[key]", body))


def mask_secrets(text: str) -> str:
    """Return a client's text without vault keys and Stripe keys, for the audit and for errors."""
    return _SECRETS.sub("[key]", text)


def strip_client_secret(body: bytes) -> bytes:
    """Return an object's JSON with every `client_secret` set to null."""
    return _CLIENT_SECRET.sub(rb"\1null", body)


__all__ = ["WORDING", "Code", "Fact", "Refusal", "error_body", "invalid", "quoted", "refuse"]


class Refusal(Struct, frozen=True):
    """A no of ours. `facts` are what a program may act on; amounts in minor units.

    `subject` is whose genuine token was refused, `key_id` which vault key: for the audit alone.
    """

    code: Code
    message: str
    param: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=lambda: NO_FACTS)
    subject: str | None = None
    key_id: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.code.status


def refuse(
    code: Code,
    *,
    param: str | None = None,
    facts: Mapping[str, Fact] | None = None,
    **fields: object,
) -> Refusal:
    """Make the refusal `code`, its one sentence filled from `fields`, else from `facts`.

    Integers called cap, left or amount are written as money where a currency stands beside
    them; `charge` is the fact charge_id where nothing else is said. Text is bounded and escaped
    here, so callers may hand over what a client sent.
    Raises: KeyError when the sentence of `code` needs a field that neither holds.
    """
    param = None if param is None else quoted(param)
    values: dict[str, object] = {"param": param or "A parameter", **(facts or {}), **fields}
    values["reason"] = values.get("reason") or "it was not granted"
    values.setdefault("charge", values.get("charge_id") or "its outcome is not known yet")
    shown = {name: _shown(name, value, values) for name, value in values.items()}
    sentence = WORDING[code][0].format_map(shown)
    return Refusal(code, sentence, param, MappingProxyType(dict(facts or {})))


def invalid(param: str, reason: object) -> Refusal:
    """Refuse the value of `param`; `reason` says what to send instead."""
    return refuse(Code.PARAMETER_INVALID, param=param, reason=str(reason))


def clock_disputed() -> Refusal:
    """Refuse what depends on the time while the clocks disagree on it."""
    return refuse(Code.LEDGER_UNAVAILABLE, facts={"clock": "disputed"})


def error_body(refusal: Refusal) -> bytes:
    """Write `refusal` in Stripe's error shape, as ASCII JSON."""
    error = {
        "type": refusal.code.type,
        "code": refusal.code.value,
        "message": refusal.message,
        **({} if refusal.param is None else {"param": refusal.param}),
        "keybrake": dict(refusal.facts),
    }
    return json.dumps({"error": error}, separators=(",", ":")).encode("ascii")


def quoted(text: str, limit: int = QUOTE_LIMIT) -> str:
    """Bound and escape text from a client: printable ASCII, at most about `limit` characters.

    Keys that a client put where none belong are masked: errors end up in logs and in models.
    """
    text = mask_secrets(text)
    cut = text[:limit]
    shown = "".join(
        character if " " <= character <= "~" else f"\\u{{{ord(character):x}}}" for character in cut
    )
    return f"{shown}..." if len(text) > limit else shown


def _shown(name: str, value: object, values: Mapping[str, object]) -> str:
    currency = values.get("currency")
    if name in _AMOUNTS and type(value) is int and isinstance(currency, str):
        return format_money(Money(value, currency))
    # Sentences of ours that arrive as a reason are longer than anything a client may say.
    return quoted(str(value), QUOTE_LIMIT * 4)
