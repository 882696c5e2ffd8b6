"""Does comparing a vault key tell by its time how much of it was right?

Method, after dudect: pairs of a token and a stored hash, of four kinds: equal, or the hash differs
from its first, its middle, its last digit on. Every pair is of its own token and lies in memory
somewhere else; all are compared in one shuffled order, each timed alone. Reported: the median of
each kind, how far the means of two kinds of wrong key lie apart (that a key was right, the answer
says anyway), and Welch's t. Over a local network some 100 ns can be told apart with many thousand
tries a guess (Crosby, Wallach and Riedi, 2009); a fifth of that counts as usable here. Two controls
show that the method finds a leak where there is one.

What is compared is a hash, so that a guesser could not choose its digits even if they showed.

    python benchmarks/key_comparison.py
"""

from __future__ import annotations

import gc
import math
import random  # noqa: TID251 - a shuffled order, from a fixed seed
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import combinations

from kb_mcp.proxy.access.tokens import matches, mint

POOL = 400
ROUNDS = 6
LAYOUTS = 10  # each with pairs of its own, elsewhere in memory
SEED = 20_261_124
LENGTH = 4_096
WRONG = ("from the first", "from the middle", "from the last")
USABLE_NS = 20
Pairs = list[tuple[str, str]]


def main() -> None:
    """Measure, and print what was found."""
    chance = random.Random(SEED)  # noqa: S311 - an order and made-up keys, nothing secret

    def key() -> tuple[str, str]:
        minted = mint("test", chance.randbytes)
        return minted.token, minted.token_hash

    def text() -> tuple[str, str]:
        digits = chance.randbytes(LENGTH // 2).hex()
        return digits, digits

    pools = _pools(key, 64)
    assert all(matches(*pair) for pair in pools["equal"])
    assert not any(matches(*pair) for kind in WRONG for pair in pools[kind])
    _report("vault keys: SHA-256, then hmac.compare_digest", matches, key, 64, chance)
    _report("control that leaks: digit by digit", _by_digit, text, LENGTH, chance)
    _report("control that leaks less: ==", str.__eq__, text, LENGTH, chance)


def _pools(make: Callable[[], tuple[str, str]], length: int) -> dict[str, Pairs]:
    kinds = {"equal": length, "from the first": 0, "from the middle": length // 2,
             "from the last": length - 1}  # fmt: skip
    pools: dict[str, Pairs] = {kind: [] for kind in kinds}
    # Made in turn and in the same way, or the kinds would lie in memory in different places.
    for _ in range(POOL):
        for kind, at in kinds.items():
            given, held = make()
            pools[kind].append(("".join(list(given)), _differing(held, at)))
    return pools


def _differing(digits: str, at: int) -> str:
    """Return `digits` with every digit from `at` on changed: a new text, also where none is."""
    return "".join(
        digit if place < at else "1" if digit == "0" else "0" for place, digit in enumerate(digits)
    )


def _by_digit(given: str, held: str) -> bool:
    return all(one == two for one, two in zip(given, held, strict=True))


def _report(
    title: str,
    compare: Callable[[str, str], object],
    make: Callable[[], tuple[str, str]],
    length: int,
    chance: random.Random,
) -> None:
    times: dict[str, list[int]] = {}
    for _ in range(LAYOUTS):
        for kind, taken in _measure(compare, _pools(make, length), chance).items():
            times.setdefault(kind, []).extend(taken)
    # Interruptions by the system are not the comparison's: what is slower than nine in ten is out.
    limit = statistics.quantiles((t for taken in times.values() for t in taken), n=10)[-1]
    kept = {kind: [t for t in taken if t <= limit] for kind, taken in times.items()}
    print(f"\n{title}, {length:,} digits ({LAYOUTS * POOL * ROUNDS:,} times each kind)")
    for kind, taken in kept.items():
        print(f"  {kind:<16} median {statistics.median(taken):>9,.0f} ns")
    wrong = [kept[kind] for kind in WRONG]
    apart = max(abs(statistics.fmean(a) - statistics.fmean(b)) for a, b in combinations(wrong, 2))
    worst = max(abs(_welch(a, b)) for a, b in combinations(wrong, 2))
    usable = "no usable difference" if apart < USABLE_NS else "a usable difference"
    print(f"  wrong ones: means at most {apart:,.1f} ns apart, |t| at most {worst:,.1f}: {usable}")


def _measure(
    compare: Callable[[str, str], object], pools: Mapping[str, Pairs], chance: random.Random
) -> dict[str, list[int]]:
    order = [(kind, *pair) for kind, pool in pools.items() for pair in pool]
    times: dict[str, list[int]] = {kind: [] for kind in pools}
    gc.disable()
    for _ in range(ROUNDS):
        chance.shuffle(order)
        for kind, given, held in order:
            began = time.perf_counter_ns()
            compare(given, held)
            times[kind].append(time.perf_counter_ns() - began)
    gc.enable()
    return times


def _welch(one: list[int], two: list[int]) -> float:
    spread = statistics.variance(one) / len(one) + statistics.variance(two) / len(two)
    return (statistics.fmean(one) - statistics.fmean(two)) / math.sqrt(spread)


if __name__ == "__main__":
    main()
