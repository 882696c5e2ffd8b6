"""Marks: what an object at Stripe says about the operation that made it.

Floor: beside interpret. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def marks(item: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of an object; what is no text is left out."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def object_names(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids under which an operation may know an object: its own, or its intent's.

    A refund names the intent of its charge, which is not its own.
    """
    intent = item.get("payment_intent")
    if item.get("object", "charge") == "charge" and isinstance(intent, str):
        return (str(item["id"]), intent)
    return (str(item["id"]),)
