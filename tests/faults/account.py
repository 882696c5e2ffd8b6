"""What a Stripe account holds: charges, what was given back of them, and disputes.

It shares nothing with the product. Amounts are integers in minor units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

PAGE_MAX = 3  # short pages, so that walks have several
# The bank has the money, or will have it.
HELD_BY_BANK = frozenset({"needs_response", "under_review", "lost"})
GONE = frozenset({"failed", "canceled", "lapsed"})


@dataclass(slots=True, kw_only=True)
class Made:
    """An object at Stripe, and which call's send made it; `fields` are those of its request."""

    id: str
    fields: dict[str, str]
    status: str
    created_ms: int
    call: int | None = None

    @property
    def operation(self) -> str:
        """The operation that marked it; empty where people made it at Stripe."""
        return self.fields.get("metadata[keybrake_operation]", "")

    @property
    def attempt(self) -> str:
        return self.fields.get("metadata[keybrake_attempt]", "")

    @property
    def amount(self) -> int:
        return int(self.fields["amount"])

    @property
    def moved(self) -> int:
        """Return how much money moved by it."""
        return self.amount

    @property
    def stands(self) -> bool:
        """Say whether money moved by it, or still may."""
        return self.status not in GONE

    def _shown(self) -> dict[str, Any]:
        marks = {k[9:-1]: v for k, v in self.fields.items() if k.startswith("metadata[")}
        status = "succeeded" if self.status == "lapsed" else self.status
        return {
            "id": self.id,
            "amount": self.amount,
            "status": status,
            "created": self.created_ms // 1000,
            "metadata": marks,
        }


@dataclass(slots=True, kw_only=True)
class Charge(Made):
    """A charge with all that became of its money."""

    refunds: list[Refund] = field(default_factory=list)
    disputes: list[Dispute] = field(default_factory=list)
    taken: int = 0  # what was captured
    captured_by: int | None = None  # the call that captured it

    @property
    def captured(self) -> bool:
        return self.taken > 0 or self.fields.get("capture") != "false"

    @property
    def authorised(self) -> bool:
        """Say whether its money is held for us, and may still be captured."""
        return self.status == "succeeded" and not self.captured

    @property
    @override
    def moved(self) -> int:
        return self.taken

    @property
    def left(self) -> int:
        return self.taken - self.given_back

    @property
    def given_back(self) -> int:
        return sum(each.amount for each in self.refunds if each.stands)

    @property
    def disputed(self) -> bool:
        """Say whether a bank holds its money."""
        return any(each.status in HELD_BY_BANK for each in self.disputes)

    def shown(self) -> dict[str, Any]:
        return self._shown() | {
            "object": "charge",
            "currency": self.fields["currency"],
            "customer": self.fields.get("customer"),
            "captured": self.captured,
            "amount_captured": self.taken,
            "disputed": bool(self.disputes),
            "refunded": self.status == "lapsed" or (self.captured and self.left == 0),
            "amount_refunded": self.amount - self.left if self.taken else 0,
        }


@dataclass(slots=True, kw_only=True)
class Refund(Made):
    """What gives some of a charge back. `ended_ms` says when it failed or was canceled."""

    charge: Charge
    ended_ms: int | None = None

    def shown(self) -> dict[str, Any]:
        currency = self.charge.fields["currency"]
        return self._shown() | {"object": "refund", "charge": self.charge.id, "currency": currency}


@dataclass(slots=True)
class Dispute:
    """What a customer's bank says of a charge."""

    id: str
    charge: Charge
    created_ms: int
    status: str = "needs_response"

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "dispute",
            "charge": self.charge.id,
            "status": self.status,
            "created": self.created_ms // 1000,
        }


@dataclass(slots=True)
class Account:
    """All objects of one account, in the order in which they were made."""

    charges: list[Charge] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    disputes: list[Dispute] = field(default_factory=list)

    def charge(self, fields: dict[str, str], status: str, now_ms: int, call: int | None) -> Charge:
        """Make a charge; one that the card declines is made too, and is `failed`."""
        made = Charge(
            id=f"ch_{len(self.charges) + 1}", fields=fields, status=status, created_ms=now_ms,
            call=call,
        )  # fmt: skip
        if fields.get("capture") != "false":
            made.taken = made.amount
        self.charges.append(made)
        return made

    def capture(self, charge_id: str, fields: dict[str, str], call: int | None) -> Charge | str:
        """Take what was authorised, or a part of it, or return the code of the error."""
        charge = self.find_charge(charge_id)
        if charge is None or charge.status == "failed":
            return "resource_missing"
        if not charge.authorised:
            return "charge_already_captured" if charge.captured else "charge_expired_for_capture"
        amount = int(fields.get("amount", charge.amount))
        if not 0 < amount <= charge.amount:
            return "amount_too_large"
        charge.taken, charge.captured_by = amount, call
        return charge

    def refund(
        self, fields: dict[str, str], status: str, now_ms: int, call: int | None
    ) -> Refund | str:
        """Give back what `fields` ask for, or return the code of the error that refuses it."""
        charge = self.find_charge(fields.get("charge", ""))
        if charge is None or charge.status != "succeeded" or not charge.captured:
            return "resource_missing"
        if charge.disputed:
            return "charge_disputed"
        if charge.left <= 0:
            return "charge_already_refunded"
        amount = int(fields.get("amount", charge.left))
        if not 0 < amount <= charge.left:
            return "amount_too_large"
        made = Refund(
            id=f"re_{len(self.refunds) + 1}", fields=fields | {"amount": str(amount)},
            status=status, created_ms=now_ms, call=call, charge=charge,
        )  # fmt: skip
        charge.refunds.append(made)
        self.refunds.append(made)
        return made

    def dispute(self, charge: Charge, now_ms: int) -> Dispute:
        made = Dispute(f"dp_{len(self.disputes) + 1}", charge, now_ms)
        charge.disputes.append(made)
        self.disputes.append(made)
        return made

    def find_charge(self, charge_id: str) -> Charge | None:
        return next((each for each in self.charges if each.id == charge_id), None)

    def look_up(self, path: str) -> tuple[int, bytes]:
        """Answer a read: one object, or a page of a list, newest first."""
        parts = urlsplit(path)
        kind, _, name = parts.path.removeprefix("/v1/").partition("/")
        lists: Mapping[str, Iterable[Charge | Refund | Dispute]] = {
            "charges": self.charges, "refunds": self.refunds, "disputes": self.disputes,
        }  # fmt: skip
        if name:
            found = [each for each in lists.get(kind, ()) if each.id == name]
            if not found:
                return 404, error("invalid_request_error", "resource_missing")
            return 200, json.dumps(found[0].shown()).encode()
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        since = int(query.get("created[gte]", 0))
        listed = [
            each.shown()
            for each in reversed(tuple(lists[kind]))
            if each.created_ms // 1000 >= since
        ]
        for named in ("customer", "charge"):
            listed = [
                each for each in listed if each.get(named) == query.get(named, each.get(named))
            ]
        after = query.get("starting_after")
        if after is not None:
            listed = listed[[each["id"] for each in listed].index(after) + 1 :]
        more = len(listed) > PAGE_MAX
        body = {"object": "list", "data": listed[:PAGE_MAX], "has_more": more}
        return 200, json.dumps(body).encode()


def error(kind: str, code: str, charge: str | None = None) -> bytes:
    """Return an error as Stripe writes it."""
    said = {"type": kind, "code": code, "message": code}
    if charge is not None:
        said["charge"] = charge
    return json.dumps({"error": said}).encode()
