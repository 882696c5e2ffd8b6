"""Money back in the simulation: callers that refund, and people who act at Stripe's own page.

What they choose is drawn from a stream of its own, and only in some seeds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tests.faults.account import Charge
from tests.faults.checks import Answer
from tests.faults.moods import REFERENCE, sdk_key
from tests.faults.people import decide_one, done_by_operator
from tests.faults.simulation import Key, Simulation

SHARE = 0.5  # of the seeds have them
RETRIED = {409, 429, 502, 503, 504}
AMOUNTS = (None, None, "700", "900", "900", "1400", "2900", "2900", "3000")
REFERENCES = (None, None, None, "goodwill", "delay", "damage", "late")
Send = Callable[[Key, str, dict[str, str], dict[str, str]], Awaitable[Answer | None]]
Think = Callable[[], Awaitable[None]]


def money_back(simulation: Simulation, send: Send, think: Think) -> list[Coroutine[Any, Any, None]]:
    """Return who gives money back in this seed: nobody, or some callers and some people."""
    back = simulation.back
    if back.random() >= SHARE:
        return []
    simulation.refunding = True
    keys = list(simulation.refund_keys)
    if back.random() < 0.4:
        keys = [back.choice(keys)]  # all want the same of one policy
    callers = [_refunder(simulation, keys, send, think) for _ in range(back.randint(2, 5))]
    return [*callers, _people_at_stripe(simulation, think), _approver(simulation, think)]


async def _refunder(simulation: Simulation, keys: list[Key], send: Send, think: Think) -> None:
    """Ask for a refund, again, and with something else about it."""
    back = simulation.back
    key = back.choice(keys)
    for _ in range(back.randint(1, 4)):
        await think()
        if not simulation.stripe.charges:
            continue
        form, headers = _draw(simulation)
        for _ in range(back.randint(1, 4)):
            answer = await send(key, "/v1/refunds", _as_allowed(simulation, key, form), headers)
            settled = answer is not None and answer.status not in RETRIED
            if back.random() < (0.5 if settled else 0.15):
                form, headers = _drift(simulation, form, headers)
            if back.random() < 0.2:
                key = back.choice(keys)
            await think()


def _draw(simulation: Simulation) -> tuple[dict[str, str], dict[str, str]]:
    back = simulation.back
    form = {"charge": _some_charge(simulation)}
    amount, reference = back.choice(AMOUNTS), back.choice(REFERENCES)
    if amount is not None:
        form["amount"] = amount
    if reference is not None:
        form[REFERENCE] = reference
    key = back.choice((None, "give-back", sdk_key(back)))
    return form, {} if key is None else {"idempotency-key": key}


def _as_allowed(simulation: Simulation, key: Key, form: dict[str, str]) -> dict[str, str]:
    """Return the refund without a reference where the key may not give one, mostly."""
    if key.policy.max_refunds_per_charge > 1 or simulation.back.random() < 0.03:
        return form
    return {name: value for name, value in form.items() if name != REFERENCE}


def _drift(
    simulation: Simulation, form: dict[str, str], headers: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return what a confused caller sends next: the refund with something else about it."""
    back = simulation.back
    form, headers = dict(form), dict(headers)
    match back.choice(("amount", "amount", "wording", "reference", "key", "charge", "all")):
        case "amount":
            amount = back.choice(AMOUNTS)
            form.pop("amount", None)
            form |= {} if amount is None else {"amount": amount}
        case "wording":
            form["reason"] = back.choice(("duplicate", "requested_by_customer"))
        case "reference":
            form[REFERENCE] = back.choice(("goodwill", "delay", "damage"))
        case "key":
            headers["idempotency-key"] = sdk_key(back)
        case "charge":
            form["charge"] = _some_charge(simulation)
        case _:
            return _draw(simulation)
    return form, headers


def _some_charge(simulation: Simulation) -> str:
    """Return a charge that others refund too, most of the time."""
    charges, back = simulation.stripe.charges, simulation.back
    paid = [each for each in charges if each.status == "succeeded"] or charges
    chosen = back.choice(paid[:2] if back.random() < 0.7 else paid)
    if back.random() < 0.05:
        chosen = back.choice(charges)
    return "ch_404" if back.random() < 0.02 else chosen.id


async def _approver(simulation: Simulation, think: Think) -> None:
    """Decide what waits for an operator, a little later."""
    for _ in range(simulation.back.randint(2, 6)):
        await think()
        if simulation.processes:
            process = simulation.back.choice(simulation.processes)
            await done_by_operator(simulation, process, "decide", decide_one)


async def _people_at_stripe(simulation: Simulation, think: Think) -> None:
    """Refund by hand, let a bank send money back, open disputes and decide them."""
    back = simulation.back
    for _ in range(back.randint(2, 9)):
        await think()
        paid = [each for each in simulation.stripe.charges if each.status == "succeeded"]
        if paid:
            acts = (*(_by_hand,) * 3, *(_comes_back,) * 3, _dispute, *(_decide,) * 2)
            act = back.choice(acts)
            act(simulation, back.choice(paid))


def _by_hand(simulation: Simulation, charge: Charge) -> None:
    simulation.stripe.give_back_by_hand(charge, simulation.back.choice((None, 300, 900, 1400)))


def _comes_back(simulation: Simulation, charge: Charge) -> None:
    """Let a refund fail that had succeeded: the bank of the customer sent it back."""
    done = [each for each in charge.refunds if each.status == "succeeded"]
    if done:
        simulation.stripe.end_refund(simulation.back.choice(done), "failed")


def _dispute(simulation: Simulation, charge: Charge) -> None:
    if not charge.disputes:
        made = simulation.stripe.account.dispute(charge, simulation.stripe.now_ms)
        simulation.log(f"  the bank opens {made.id} about {charge.id}")


def _decide(simulation: Simulation, _charge: Charge) -> None:
    waiting = [
        each for each in simulation.stripe.account.disputes if each.status == "needs_response"
    ]
    if waiting:
        decided = simulation.back.choice(waiting)
        decided.status = simulation.back.choice(("won", "won", "won", "lost"))
        simulation.log(f"  {decided.id} about {decided.charge.id} is {decided.status}")
