"""Visibility: whether an answer of Stripe's shows only customers that a key may touch.

Floor: above authority. Pure. A read is checked before it is forwarded, since a path or a filter
does not say whose object comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kb_mcp.proxy.access.authorize import may_touch
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.stripe.json_objects import parse_object


def check_answer(policy: Policy, body: bytes) -> Refusal | None:
    """Return why this key may not see `body`, or None where it may."""
    if policy.customers.any:
        return None
    shown = list(_shown(parse_object(body)))
    if all(may_touch(policy, *each) for each in shown):
        return None
    return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason="the customer is not among its own")


def _shown(parsed: Any) -> Iterator[tuple[str | None, dict[str, str] | None]]:
    """Yield the customer of each object in an answer, and its metadata where it is there."""
    if not isinstance(parsed, dict):
        yield None, None
        return
    items = parsed.get("data") if parsed.get("object") in {"list", "search_result"} else [parsed]
    for item in items if isinstance(items, list) else [None]:
        yield _owner(item)


def _owner(item: Any) -> tuple[str | None, dict[str, str] | None]:
    if not isinstance(item, dict):
        return None, None
    if item.get("object") == "customer":
        metadata = item.get("metadata")
        return item.get("id"), metadata if isinstance(metadata, dict) else None
    customer = item.get("customer")
    return _owner(customer) if isinstance(customer, dict) else (customer, None)
