"""What kind of day a seed has, and what its callers ask for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random  # noqa: TID251 seeded by the simulation

from tests.faults.simulation import Simulation
from tests.faults.stripe import FATES, HOUR, LOSING, MINUTE, SECOND

PERIOD, REFERENCE = "metadata[billing_period]", "metadata[reference]"
AMOUNTS = (2900, 2900, 3000)


@dataclass(frozen=True, slots=True)
class Mood:
    """What kind of day it is. `pauses` are (longest ms, weight): how long somebody thinks."""

    weight: int
    callers: tuple[int, int]
    pauses: tuple[tuple[int, int], ...]
    customers: tuple[str, ...]
    periods: tuple[str, ...]
    references: tuple[str | None, ...]
    recoveries: tuple[int, int]
    operators: tuple[int, ...]
    fates: tuple[tuple[str, int], ...] = FATES


EVERY_PERIOD = ("2026-11", "2026-11", "2026-10", "2026-10-15/2026-11-14")
MIXED = Mood(
    weight=5,
    callers=(3, 6),
    pauses=((50, 40), (5 * SECOND, 25), (40 * SECOND, 10), (20 * MINUTE, 15), (26 * HOUR, 4)),
    customers=("cus_A", "cus_A", "cus_B", "cus_C"),
    periods=EVERY_PERIOD,
    references=(None, None, None, "second"),
    recoveries=(2, 5),
    operators=(0, 1, 2),
)
# Everybody at once, about few bills: races for guards, caps and keys.
STORM = Mood(
    weight=4,
    callers=(5, 8),
    pauses=((8, 70), (60, 25), (30 * SECOND, 5)),
    customers=("cus_A",),
    periods=("2026-11", "2026-10"),
    references=(None, None, "second", "third", "fourth"),
    recoveries=(0, 3),
    operators=(0, 1, 1),
)
# Days between two calls, and nobody recovers: what Stripe has forgotten by then.
SLOW = Mood(
    weight=2,
    callers=(2, 3),
    pauses=((50, 20), (5 * SECOND, 10), (20 * MINUTE, 20), (30 * HOUR, 40)),
    customers=("cus_A", "cus_B"),
    periods=("2026-11", "2026-10-15/2026-11-14"),
    references=(None,),
    recoveries=(0, 1),
    operators=(0,),
)
# One bill, tried again and again with something else about it, between voids and declines.
STUBBORN = Mood(
    weight=3,
    callers=(2, 4),
    pauses=((50, 25), (5 * SECOND, 15), (13 * MINUTE, 45), (90 * MINUTE, 15)),
    customers=("cus_A",),
    periods=("2026-11",),
    references=(None,),
    recoveries=(4, 7),
    operators=(0, 0, 1),
    fates=LOSING,
)
MOODS = (MIXED, STORM, SLOW, STUBBORN)


def draw_bill(simulation: Simulation, mood: Mood) -> tuple[dict[str, str], dict[str, str]]:
    chance = simulation.chance
    form = {
        "amount": str(chance.choice(AMOUNTS)),
        "currency": chance.choice(("usd", "usd", "usd", "eur")),
        "customer": chance.choice(mood.customers),
    }
    headers: dict[str, str] = {}
    kind = chance.choice(("content", "content", "content", "described", "explicit", "body"))
    if kind == "content":
        form[PERIOD] = chance.choice(mood.periods)
        reference = chance.choice(mood.references)
        if reference is not None:
            form[REFERENCE] = reference
    elif kind == "described":
        form["description"] = f"Subscription {mood.periods[0]}"
    elif kind == "explicit":
        headers["idempotency-key"] = chance.choice(("november", "invoice-7"))
    if kind in {"content", "body"} and chance.random() < 0.5:
        headers["idempotency-key"] = sdk_key(chance)
    return form, headers


def drift(
    simulation: Simulation, mood: Mood, form: dict[str, str], headers: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what a confused caller sends next: the bill with something else about it."""
    chance = simulation.chance
    form, headers = dict(form), dict(headers)
    what = chance.choice(("amount", "currency", "period", "customer", "reference", "key", "name"))
    if what == "amount":
        form["amount"] = str(chance.choice(AMOUNTS))
    elif what == "currency":
        form["currency"] = chance.choice(("usd", "eur"))
    elif what == "customer":
        form["customer"] = chance.choice(mood.customers)
    elif what == "period" and PERIOD in form:
        form[PERIOD] = chance.choice(mood.periods)
    elif what == "reference" and PERIOD in form:
        form[REFERENCE] = chance.choice(("second", "third"))
    elif what == "key":
        headers["idempotency-key"] = sdk_key(chance)
    elif what == "name":
        return draw_bill(simulation, mood)
    return form, headers


def with_card(
    chance: Random, form: dict[str, str], headers: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the bill with a payment method that the caller has looked up for this call."""
    form = form | {"source": chance.choice(("card_A", "card_B"))}
    return form, headers | {"keybrake-looked-up": "payment_method"}


def sdk_key(chance: Random) -> str:
    """Return a key as an SDK makes one up: a UUID."""
    digits = chance.randbytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
