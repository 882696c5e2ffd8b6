"""A model of a thousand Stripe accounts and a million agents: how many shards, at what delay.

Usage: scale_model.py [--seed N]   Seeded: the same seed prints the same tables. What is measured
and what is assumed stands in docs/scale.md; change the constants to what you measure.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random  # noqa: TID251 a seeded model
from collections import Counter, defaultdict, deque
from dataclasses import dataclass

ACCOUNTS = 1_000
AGENTS = 1_000_000
CHARGES_A_DAY = (2, 20, 60)  # an agent, on average
SKEWS = (0.0, 0.8, 1.1)  # of accounts: 0 is even, 1.1 gives the largest a fifth of everything
PEAK = 12  # the busiest minute of a month's end against the average one
STRIPE_LIMIT = 100  # charges a second and account
STRIPE_MS = 400.0  # median of Stripe's own answer
FLUSH_MS, ITEM_MS = 3.0, 0.35  # one transaction, and each step in it
BATCH_MAX = 256
SLOTS = 8  # transactions that one primary carries at a time
SECONDS = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run showed; delays in ms are what the ledger adds to a charge."""

    charges: int
    over_limit: int
    p50: float
    p99: float
    busy: float


def account_rates(accounts: int, total: float, skew: float) -> list[float]:
    """Return charges a second of each account, by Zipf's law."""
    weights = [1 / rank**skew for rank in range(1, accounts + 1)]
    return [total * weight / sum(weights) for weight in weights]


def simulate(chance: random.Random, rates: list[float], shards: int) -> Outcome:
    """Run SECONDS of load: an account's transactions come one after another, a shard's in SLOTS."""
    numbers = itertools.count()
    events: list[tuple[float, int, str, int, float]] = []
    over = 0
    for account, rate in enumerate(rates):
        over += _arrive(chance, events, numbers, account, rate)
    waiting: dict[int, deque[tuple[float, str]]] = defaultdict(deque)
    running: set[int] = set()
    ready: list[deque[int]] = [deque() for _ in range(shards)]
    free, busy = [SLOTS] * shards, 0.0
    finished: list[float] = []

    def begin(shard: int, now: float) -> float:
        spent = 0.0
        while free[shard] and ready[shard]:
            account = ready[shard].popleft()
            queue = waiting[account]
            batch = [queue.popleft() for _ in range(min(len(queue), BATCH_MAX))]
            took = (FLUSH_MS + ITEM_MS * len(batch)) * chance.lognormvariate(0, 0.25)
            free[shard] -= 1
            spent += took
            done = now + took
            heapq.heappush(events, (done, next(numbers), "flushed", account, 0.0))
            for asked, stage in batch:
                _continue(chance, events, numbers, account, stage, done - asked, done, finished)
        return spent

    while events:
        now, _, kind, account, delay = heapq.heappop(events)
        shard = account % shards
        if kind == "flushed":
            running.discard(account)
            free[shard] += 1
        else:
            waiting[account].append((now - delay, kind))
        if waiting[account] and account not in running:
            running.add(account)
            ready[shard].append(account)
        busy += begin(shard, now)
    finished.sort()
    return Outcome(
        charges=len(finished), over_limit=over, p50=finished[len(finished) // 2],
        p99=finished[int(len(finished) * 0.99)],
        busy=busy / (SECONDS * 1000 * SLOTS * shards),
    )  # fmt: skip


def _arrive(
    chance: random.Random, events: list[tuple[float, int, str, int, float]],
    numbers: itertools.count[int], account: int, rate: float,
) -> int:  # fmt: skip
    """Put an account's charges on the line; return how many Stripe's limit turns away."""
    now, seconds = 0.0, Counter[int]()
    while (now := now + chance.expovariate(rate / 1000)) < SECONDS * 1000:
        seconds[int(now // 1000)] += 1
        if seconds[int(now // 1000)] <= STRIPE_LIMIT:
            heapq.heappush(events, (now, next(numbers), "decide", account, 0.0))
    return sum(max(count - STRIPE_LIMIT, 0) for count in seconds.values())


def _continue(  # noqa: PLR0913, PLR0917 the state of one step of the model
    chance: random.Random, events: list[tuple[float, int, str, int, float]],
    numbers: itertools.count[int], account: int, stage: str, delay: float, done: float,
    finished: list[float],
) -> None:  # fmt: skip
    """Send what was decided; a charge is over when its conclusion is durable."""
    if stage == "decide":
        answered = done + STRIPE_MS * chance.lognormvariate(0, 0.4)
        heapq.heappush(events, (answered, next(numbers), "conclude", account, delay))
    else:
        finished.append(delay)


def slices(chance: random.Random, regions: int, parts: int, skew: float) -> tuple[float, float]:
    """Lease a cap out in `parts` slices over regions, until the first charge is refused.

    Return the share of the cap that was spent by then, and round trips to the home region a charge.
    """
    cap, price = 10_000, 1
    left, size = cap, max(cap // parts, 1)
    held, spent, trips = [0] * regions, 0, 0
    weights = [1 / rank**skew for rank in range(1, regions + 1)]
    while True:
        region = chance.choices(range(regions), weights)[0]
        if held[region] < price:
            trips += 1
            lease = min(size, left)
            held[region] += lease
            left -= lease
        if held[region] < price:
            return spent / cap, trips / max(spent, 1)
        held[region] -= price
        spent += price


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    print("charges/s  skew  shards  hottest/s  over limit  added p50 ms  added p99 ms  busy")
    for daily, skew in itertools.product(CHARGES_A_DAY, SKEWS):
        total = AGENTS * daily * PEAK / 86_400
        rates = account_rates(ACCOUNTS, total, skew)
        for shards in (1, 4, 16):
            found = simulate(random.Random(seed), rates, shards)  # noqa: S311 a seeded model
            share = found.over_limit / (found.charges + found.over_limit)
            print(
                f"{total:9.0f}  {skew:4.1f}  {shards:6}  {rates[0]:9.1f}  {share:10.1%}"
                f"  {found.p50:12.1f}  {found.p99:12.1f}  {found.busy:4.0%}"
            )
    print("\nA leased slice of a cap, three regions\nslices  spent at the first refusal  trips")
    for parts in (10_000, 1_000, 100, 30, 10):
        spent, trips = slices(random.Random(seed), 3, parts, 1.0)  # noqa: S311 a seeded model
        print(f"{parts:6}  {spent:26.1%}  {trips:5.3f}")


if __name__ == "__main__":
    main()
