"""The pure core against a small model: what anybody would expect of bills, told in a page.

The model knows bills, keys at Stripe and money, and says what each call must be answered and what
must be held and spent. It expects nothing by kb_mcp's own means, and knows of no rows or locks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from kb_mcp.proxy.rules.outcomes.resolve import Absent
from kb_mcp.proxy.stripe.evidence import Proof
from tests.proxy.rules.one_key import (
    BILLING,
    KEY,
    LOST,
    NEVER_SENT,
    REJECTED,
    START_MS,
    OneKey,
    declined,
    made,
    told,
)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
CAP = 6_000
CUSTOMERS, PERIODS = ("cus_A1", "cus_B2"), ("2026-10", "2026-11")
AMOUNTS, CURRENCIES = (2900, 3000), ("usd", "eur")
OUTCOMES = ("paid", "lost", "lost", "declined", "declined", "rejected", "never sent")
Slot = tuple[str, str]  # customer and period: what may be billed once
Price = tuple[int, str]


@dataclass
class Bill:
    """One price of one slot: where it stands, and its keys at Stripe."""

    state: str = "new"  # new, open, paid, no, void
    key: int = 0  # the attempt whose key is in use
    reuse: bool = False  # whether that key was never begun at Stripe
    sent_at: int = 0
    first_sent_at: int = 0
    unanswered: int = 0
    day: int = 0
    emptied: int = 0
    voided_at: int = 0

    def occupies(self) -> bool:
        return self.state in {"open", "paid"} or (self.state == "void" and self.emptied < 3)


@dataclass
class Slots:
    """All bills of one slot, and the declines of the slot, whatever the price was."""

    bills: dict[Price, Bill] = field(default_factory=dict)
    declines: int = 0
    declined_at: int = 0
    last_declined: Price | None = None


class Billing(RuleBasedStateMachine):
    """Calls, outcomes, time and recovery in any order."""

    @initialize()
    def begin(self) -> None:
        caps = {"usd": CAP, "eur": CAP}
        self.one_key = OneKey(
            BILLING.model_copy(
                update={
                    "caps": BILLING.caps.model_copy(update={"daily": caps}),
                    "max_unresolved": 1_000,
                    "daily_declines": 1_000,
                    "max_attempts": 3,
                }
            )
        )
        self.now = START_MS
        self.slots: dict[Slot, Slots] = {}
        self.alive = True
        self.charges = 0
        self.last: tuple[str, str, int, str] = ("cus_A1", "2026-11", 2900, "usd")

    @rule(
        customer=st.sampled_from(CUSTOMERS),
        period=st.sampled_from(PERIODS),
        amount=st.sampled_from(AMOUNTS),
        currency=st.sampled_from(CURRENCIES),
        outcome=st.sampled_from(OUTCOMES),
    )
    def call(self, customer: str, period: str, amount: int, currency: str, outcome: str) -> None:
        self.make(customer, period, amount, currency, outcome)

    def make(self, customer: str, period: str, amount: int, currency: str, outcome: str) -> None:
        """Call, compare the answer with what is expected, and let the send end in `outcome`."""
        self.last = customer, period, amount, currency
        slot = self.slots.setdefault((customer, period), Slots())
        bill = slot.bills.setdefault((amount, currency), Bill())
        expected = self.expect(slot, (amount, currency), bill)
        asked = self.one_key.ask(customer=customer, period=period, amount=amount, currency=currency)
        assert told(asked) == expected
        if not expected.startswith("proceed"):
            return
        self.charges += 1
        proofs: dict[str, Proof] = {
            "paid": made(f"ch_{self.charges}"),
            "lost": LOST,
            "declined": declined(f"ch_{self.charges}"),
            "rejected": REJECTED,
            "never sent": NEVER_SENT,
        }
        self.one_key.end(asked, proofs[outcome])
        self.sent(slot, (amount, currency), bill, outcome)

    @rule(
        outcome=st.sampled_from(OUTCOMES),
        milliseconds=st.sampled_from((0, 15 * MINUTE, 15 * MINUTE, 23 * HOUR)),
    )
    def call_the_same_again(self, outcome: str, milliseconds: int) -> None:
        self.wait(milliseconds)
        customer, period, amount, currency = self.last
        self.make(customer, period, amount, currency, outcome)

    def expect(self, slot: Slots, price: Price, bill: Bill) -> str:
        """Say what the call must be answered."""
        if not self.alive:
            return "vault_key_revoked"
        fresh = self.now < bill.first_sent_at + 23 * HOUR
        if bill.state == "paid":
            return "replay"
        if bill.state == "open":
            return self.key_named(bill.key) if fresh else "outcome_unknown"
        if bill.state == "void" and bill.occupies() and not fresh:
            return "outcome_unknown"
        others = [each for other, each in slot.bills.items() if other != price]
        waits = slot.last_declined is not None and self.now < slot.declined_at + 15 * MINUTE
        waits = waits and slot.bills[slot.last_declined or price].state == "no"
        if bill.state == "no" and waits:
            return "replay"
        if any(each.occupies() for each in others):
            return "period_already_charged"
        if waits:
            return "replay"
        if slot.declines >= 3:
            return "attempts_exhausted"
        if self.used(price[1], self.now // DAY) + price[0] > CAP:
            return "spend_cap_exceeded"
        keeps = (bill.state == "void" and bill.occupies()) or (
            bill.state == "no" and bill.reuse and fresh
        )
        return self.key_named(bill.key if keeps else bill.key + 1)

    def sent(self, slot: Slots, price: Price, bill: Bill, outcome: str) -> None:
        """Take in what a send came to."""
        fresh = self.now < bill.first_sent_at + 23 * HOUR
        again = bill.state == "open" or (bill.state == "void" and bill.occupies())
        again = again or (bill.state == "no" and bill.reuse and fresh)
        if bill.state != "open":
            bill.day = self.now // DAY
        if not again:
            bill.key, bill.first_sent_at, bill.unanswered = bill.key + 1, self.now, 0
        bill.sent_at, bill.reuse = self.now, False
        if outcome == "paid":
            bill.state = "paid"
        elif outcome == "declined":
            bill.state = "no"
            slot.declines += 1
            slot.declined_at, slot.last_declined = self.now, price
        elif outcome == "lost":
            bill.state, bill.unanswered = "open", bill.unanswered + 1
        elif bill.unanswered:
            bill.state = "open"  # an earlier send may still be on its way
        else:
            bill.state, bill.reuse = "no", outcome == "never sent"

    @rule(milliseconds=st.sampled_from((1, MINUTE, 15 * MINUTE, HOUR, 9 * HOUR, 23 * HOUR, DAY)))
    def time_passes(self, milliseconds: int) -> None:
        self.wait(milliseconds)

    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.one_key.pass_time(milliseconds)

    @rule()
    def recover_and_find_nothing(self) -> None:
        for operation_id in list(self.one_key.snapshot.operations):
            self.one_key.read(operation_id, Absent())
        for slot in self.slots.values():
            for bill in slot.bills.values():
                self.find_nothing(bill)

    def find_nothing(self, bill: Bill) -> None:
        if bill.state == "open" and self.now > bill.sent_at + 10 * MINUTE:
            bill.state, bill.emptied, bill.voided_at = "void", 1, self.now
        elif bill.state == "void" and bill.occupies():
            due = HOUR if bill.emptied == 1 else 25 * HOUR
            bill.emptied += self.now >= bill.voided_at + due

    @rule(really=st.integers(0, 9))
    def revoke(self, really: int) -> None:
        if really == 0:
            self.alive = False
            keys = self.one_key.snapshot.keys
            keys[KEY] = replace(keys[KEY], revoked_at=self.now)

    @invariant()
    def money_is_where_the_model_says(self) -> None:
        if not hasattr(self, "room"):
            return
        for window in self.one_key.snapshot.windows.values():
            if window.key.scope == "account" and window.key.currency:
                days = (self.now // DAY) - 40, (self.now // DAY) + 1
                names = {day_name(day): day for day in range(*days)}
                used = self.used(window.key.currency, names[window.key.start])
                assert window.reserved + window.settled == used

    def used(self, currency: str, day: int) -> int:
        return sum(
            amount
            for slot in self.slots.values()
            for (amount, name), bill in slot.bills.items()
            if name == currency and bill.day == day and bill.state in {"open", "paid"}
        )

    @staticmethod
    def key_named(number: int) -> str:
        return "proceed as K" if number == 1 else f"proceed as K-{number}"


def day_name(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()


Billing.TestCase.settings = settings(stateful_step_count=40)
TestBillingFollowsTheModel = Billing.TestCase
