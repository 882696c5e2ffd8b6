"""Visibility: whether an answer of Stripe's shows only customers that a key may touch.

Floor: above authorize. Pure. A read is checked before it is forwarded, since a path or a filter
does not say whose object comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from kb_mcp.proxy.access.authorize import may_touch, needs_customer
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.stripe.json_objects import object_id, parse_object

NOBODY: Final[Mapping[str, Mapping[str, str] | None]] = MappingProxyType({})


def customers_to_look_up(policy: Policy, body: bytes) -> frozenset[str]:
    """Return the customers in `body` whose metadata decides whether this key may see it."""
    if policy.customers.any or not policy.customers.metadata:
        return frozenset()
    shown = _shown(parse_object(body))
    named = (object_id(customer) for customer, metadata in shown if metadata is None)
    return frozenset(each for each in named if each is not None and needs_customer(policy, each))


def check_answer(
    policy: Policy, body: bytes, known: Mapping[str, Mapping[str, str] | None] = NOBODY
) -> Refusal | None:
    """Return why this key may not see `body`, or None where it may.

    `known` is the metadata of customers that were looked up.
    """
    if policy.customers.any:
        return None
    shown = list(_shown(parse_object(body)))
    if all(
        may_touch(policy, customer, metadata or known.get(customer or ""))
        for customer, metadata in shown
    ):
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
