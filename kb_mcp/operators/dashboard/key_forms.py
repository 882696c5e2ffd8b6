"""The two forms for a new key: a built-in role with what narrows it, or a policy file.

Floor: operators, below the dashboard's actions. A form that is not valid is shown again with
what was wrong, so an error carries the form as it was filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kb_mcp.operators.actions.keys import NARROWING, KeyRequestError, NewKey, read_new_key
from kb_mcp.operators.requests import InputError
from kb_mcp.proxy.access.policy import CAP_KINDS, RefundCapRules
from kb_mcp.proxy.access.tokens import Mode

Fields = Mapping[str, str]


class FormError(InputError):
    """A form for a new key that is not valid: one line for each reason."""

    def __init__(self, errors: Sequence[str], param: str | None, form: Fields) -> None:
        """Take the reasons, the field, and the form as it was filled in."""
        super().__init__(400, "parameter_invalid", "; ".join(errors), param)
        self.errors = tuple(errors)
        self.form = form


def read_key_form(form: Fields, mode: Mode, now: int) -> NewKey:
    """Return the key that a form asks for; `now` in ms UTC. Raises: FormError."""
    given = {name: text.strip() for name, text in form.items() if text.strip()}
    texts = ("label", "agent", "expires_at", *(() if "policy" in form else ("role", *NARROWING)))
    fields: dict[str, Any] = {name: given[name] for name in texts if name in given}
    fields["uncapped"] = "uncapped" in form
    if "policy" not in form:
        fields["caps"] = {name: given[name] for name in CAP_KINDS if name in given}
        refunds = {
            name: given[f"refund_{name}"]
            for name in RefundCapRules.model_fields
            if f"refund_{name}" in given
        }
        if refunds:
            fields["refund_caps"] = refunds
    elif "policy" not in given:
        raise FormError(["Paste a policy, or choose its file."], "policy", form)
    else:
        fields["policy"] = form["policy"]
    try:
        return read_new_key(fields, mode, now)
    except KeyRequestError as error:
        raise FormError(error.errors, error.param.rpartition(".")[2], form) from None
