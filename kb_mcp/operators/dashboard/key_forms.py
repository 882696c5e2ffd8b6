"""The two forms for a new key: a built-in role with what narrows it, or a policy file.

Floor: operators, below the dashboard's actions. A form that cannot be meant is shown again with
what was wrong, so an error carries the form as it was filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kb_mcp.money import MoneyError, parse_cap
from kb_mcp.operators.actions.keys import Wanted
from kb_mcp.operators.requests import InputError, KeyBody, check_body, read_policy, read_wanted
from kb_mcp.proxy.access.policy_files import PolicyError, parse_policy
from kb_mcp.proxy.access.tokens import Mode

Fields = Mapping[str, str]
CAPS: Final = ("per_charge", "daily", "monthly", "per_customer_daily")
_TEXTS = ("label", "agent", "expires_at")


class FormError(InputError):
    """A form for a new key that cannot be meant: one line for each reason."""

    def __init__(self, errors: Sequence[str], param: str | None, form: Fields) -> None:
        """Take the reasons, the field, and the form as it was filled in."""
        super().__init__(400, "parameter_invalid", "; ".join(errors), param)
        self.errors = tuple(errors)
        self.form = form


def read_key_form(form: Fields, mode: Mode, now: int) -> Wanted:
    """Return the key that a form asks for; `now` in ms UTC. Raises: FormError."""
    try:
        return (_from_file if "policy" in form else _from_role)(form, mode, now)
    except PolicyError as error:
        raise FormError(error.errors, "policy", form) from None
    except InputError as error:
        raise FormError([error.message], error.param, form) from None


def _from_file(form: Fields, mode: Mode, now: int) -> Wanted:
    text = form["policy"]
    if not text.strip():
        raise InputError(400, "parameter_invalid", "Paste a policy, or choose its file.", "policy")
    # A TOML document never begins with a brace, a JSON object always does.
    policy = parse_policy(text, "json" if text.lstrip().startswith("{") else "toml")
    body = check_body(KeyBody, {**_texts(form), "uncapped": "uncapped" in form})
    return read_policy(policy, body, mode, now)


def _from_role(form: Fields, mode: Mode, now: int) -> Wanted:
    caps = {name: _caps(name, form[name]) for name in CAPS if form.get(name, "").strip()}
    asked: dict[str, Any] = {**_texts(form), "role": form.get("role", "").strip(), "caps": caps}
    asked["uncapped"] = "uncapped" in form
    for name in ("rate", "daily_charges"):
        if form.get(name, "").strip():
            asked[name] = _count(name, form[name].strip())
    for name in ("approval_above", "refund_approval_above"):
        if form.get(name, "").strip():
            asked[name] = _caps(name, form[name])
    if form.get("refund_daily", "").strip():
        asked["refund_caps"] = {"daily": _caps("refund_daily", form["refund_daily"])}
    return read_wanted(check_body(KeyBody, asked), mode, now)


def _texts(form: Fields) -> dict[str, str | None]:
    return {name: form.get(name, "").strip() or None for name in _TEXTS}


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7):
        raise InputError(400, "parameter_invalid", "Give a whole number.", name)
    return int(text)


def _caps(name: str, text: str) -> dict[str, int]:
    try:
        caps = [parse_cap(part.strip()) for part in text.split(",")]
    except MoneyError as error:
        raise InputError(400, "parameter_invalid", str(error), name) from None
    found = {cap.currency: cap.amount for cap in caps}
    if len(found) != len(caps):
        raise InputError(400, "parameter_duplicate", "One cap for each currency.", name)
    return found
