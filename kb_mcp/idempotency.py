"""Names of billing acts: what two callers who mean the same bill both arrive at.

Floor: the shared ground, free to both wings. Pure. Every name is 32 hex characters; each rule
has a domain of its own, so that nobody can pick a key that lands on another rule's name.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from kb_mcp.money import check_amount
from kb_mcp.periods import parse_period

NAME_LENGTH: Final = 32
CUSTOMER_ID: Final = re.compile(r"cus_[A-Za-z0-9]{1,64}")
# Printable ASCII without blanks at either end: equal to the eye is equal to the hash.
REFERENCE: Final = re.compile(r"[!-~](?:[ -~]{0,98}[!-~])?")

_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_SDK_MADE = re.compile(rf"(?:stripe-[a-z0-9-]{{1,32}}-retry-)?{_UUID}")


def idempotency_key(
    customer_id: str,
    amount_cents: int,
    billing_period: str,
    currency: str = "usd",
    reference: str | None = None,
) -> str:
    """Derive the key of a bill from what it bills, never from how its fields are called.

    `amount_cents` is in minor units of `currency`; the period may be written in any accepted
    form. Currency and reference count only when they differ from `usd` and none.
    Raises: ValueError when a value is not valid.
    """
    if not CUSTOMER_ID.fullmatch(customer_id):
        raise ValueError("The customer must be a Stripe customer id, for example cus_Abc123.")
    currency = currency.lower()
    check_amount(amount_cents, currency)
    if reference:
        check_reference(reference)
    seed = f"{customer_id}:{amount_cents}:{parse_period(billing_period).label}"
    if currency != "usd" or reference:
        seed += f":{currency}:{reference or ''}"
    return hashlib.sha256(seed.encode()).hexdigest()[:NAME_LENGTH]


def check_reference(reference: str) -> str:
    """Return `reference`. Raises: ValueError, when it is none."""
    if not REFERENCE.fullmatch(reference):
        raise ValueError("A reference must be 1 to 100 printable ASCII characters.")
    return reference


def refund_name(charge_id: str, reference: str | None = None) -> str:
    """Name a refund by the charge that it gives back, whatever its amount and its wording."""
    return _name("refund", charge_id, reference or "")


def invoice_name(invoice_id: str) -> str:
    """Name the payment of an invoice, which is one bill whatever is left of it."""
    return _name("invoice", invoice_id)


def explicit_name(endpoint: str, customer: str | None, key: str) -> str:
    """Name an operation by the caller's key, per endpoint and customer."""
    return _name("explicit", endpoint, customer or "", key)


def caller_name(key: str) -> str:
    """Name an operation by the caller's key as it is, for policies of mode `caller`."""
    return _name("caller", key)


def caller_name_of_endpoint(endpoint: str, key: str) -> str:
    """Name it as version 0.1.0 did, which let one key name an act at each endpoint."""
    return _name("caller", endpoint, key)


def body_name(canonical_body: bytes, endpoint: str) -> str:
    """Name the act that this canonical body asks of this endpoint."""
    return _name("body", endpoint, canonical_body)


def occurrence_key(name: str, n: int) -> str:
    """Number the occurrences of a body: the first is 1."""
    return _name("occurrence", name, str(n))


def is_sdk_made_key(key: str) -> bool:
    """Say whether a Stripe SDK made this key up, so that it names nothing.

    Source: stripe-python sends a bare UUID, stripe-node `stripe-node-retry-` and a UUID.
    """
    return _SDK_MADE.fullmatch(key) is not None


def _name(domain: str, *parts: str | bytes) -> str:
    # Lengths keep ("a", "bc") and ("ab", "c") apart. No derived key's seed begins like this.
    digest = hashlib.sha256(f"keybrake:{domain}:1".encode())
    for part in parts:
        octets = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(b"\0" + str(len(octets)).encode() + b"\0" + octets)
    return digest.hexdigest()[:NAME_LENGTH]
