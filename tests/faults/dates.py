"""What Stripe's `Date` says in a seed, right or wrong; and how far from the truth time may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random  # noqa: TID251 seeded by the simulation
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from tests.faults.process import Process
    from tests.faults.simulation import Simulation

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
KINDS = {"right": 60, "once": 14, "for a while": 14, "standing still": 6, "none": 6}
LIES = (-DAY, -2 * HOUR, 2 * HOUR, DAY, 40 * DAY)
# Two clocks that agree may be a minute apart; an answer takes up to ten seconds.
NEAR_MS = 75_000
HEARD_FOR_MS = 10 * MINUTE


@dataclass(slots=True)
class Dates:
    """The `Date` of each answer. `kind` is what goes wrong with it in this seed."""

    chance: Random
    kind: str = field(init=False)
    off_ms: int = 0
    lies: set[int] = field(default_factory=set)  # by how much an answer was ever off
    until_ms: int = -1

    def __post_init__(self) -> None:
        (self.kind,) = self.chance.choices(list(KINDS), list(KINDS.values()))

    def told(self, loop_ms: int, true_ms: int) -> str | None:
        """Return the header of an answer that is given now."""
        if self.kind == "none":
            return None
        if self.kind == "standing still":
            return "Wed, 04 Nov 2026 10:00:00 GMT"
        off_ms = 0
        if self.kind == "once" and self.chance.random() < 0.15:
            off_ms = self.chance.choice(LIES)
        if self.kind == "for a while":
            if loop_ms > self.until_ms:
                self.off_ms = 0 if self.off_ms else self.chance.choice(LIES)
                self.until_ms = loop_ms + self.chance.choice((1_000, MINUTE, HOUR, 12 * HOUR))
            off_ms = self.off_ms
        self.lies |= {off_ms} - {0}
        return formatdate((true_ms + off_ms) // 1000, usegmt=True)

    def lied(self, off_ms: int) -> bool:
        """Say whether an answer was ever wrong by `off_ms`."""
        return any(abs(off_ms - lie) <= NEAR_MS for lie in self.lies)


@dataclass(slots=True)
class TrueTime:
    """Compares the time by which something is sent with the true one.

    The product cannot know better than a host whose clock was turned, where Stripe has told no
    time or is wrong by the same, nor than a Stripe that lies from the first day on: what is decided
    then, and after it, is `excused`.
    """

    excused: bool = False
    begun: bool = False  # something was sent, and dated rightly

    def check(self, simulation: Simulation, process: Process, snapshot: Snapshot) -> str:
        """Return what is wrong with the time of a transaction that commits now, or nothing."""
        stripe = simulation.stripe
        lying = stripe.dates.kind not in {"right", "once"}
        heard_at = process.heard_at
        heard = heard_at is not None and simulation.loop.now_ms - heard_at <= HEARD_FOR_MS
        # Two witnesses that are wrong by the same are right, as far as anybody can know.
        offset_ms = simulation.offset_ms
        agree = stripe.dates.lied(offset_ms)
        if abs(offset_ms) > MINUTE and (lying or not heard or agree):
            self.excused = True
        sends = any(
            row.kind == "decision" and row.decision == "proceed" for row in snapshot.dirty.audit
        )
        off_ms = snapshot.now - stripe.now_ms
        if not sends or self.excused:
            return ""
        if abs(off_ms) <= NEAR_MS:
            self.begun = True
            return ""
        if not self.begun and (lying or stripe.dates.lied(off_ms)):
            self.excused = True
            return ""
        return f"a send is dated {off_ms} ms off the truth ({stripe.dates.kind} dates)"
