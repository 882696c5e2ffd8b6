"""Runs of load in front of one upstream, each followed by the count of what really happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stage.contenders import Contender
from stage.doors import Door
from stage.load import Job, Ran, wrk
from stage.machine import cores, cpu_s
from stage.open_loop import Seen, post_charge, run_open
from stage.truth import accepted, charges_seen, settle
from stage.upstream import Upstream

CLIENTS = 32
CHARGING = frozenset({"charge", "tool", "tool26"})


@dataclass
class Runs:
    """Numbers the runs, so that no two send the same bill; `charges` counts what kb-mcp charged."""

    upstream: Upstream
    period: str = field(default_factory=lambda: time.strftime("%Y-%m", time.gmtime()))
    runs: int = 0
    charges: int = 0

    def new_bills(self, contender: Contender) -> Job:
        """Return a load of bills that nobody has seen yet, or whatever else it serves."""
        self.runs += 1
        return Job(contender.mode, contender.token, f"R{self.runs}", period=self.period)

    def warm(self, contender: Contender, clients: int, seconds: float) -> None:
        """Have a contender fill its caches; nothing of it is kept. No time, no load."""
        if seconds:
            self.load(contender, self.new_bills(contender), clients, seconds)

    def load(
        self, contender: Contender, job: Job, clients: int, seconds: float
    ) -> tuple[Ran, float]:
        """Put load on a contender and see that the books agree; return the CPU it spent, in s."""
        self.upstream.forget()
        seconds = max(seconds, contender.least_s)
        begun = cpu_s(contender.roots)
        ran = wrk(contender.url, job, clients=clients, seconds=seconds, core=cores()[1])
        spent = cpu_s(contender.roots) - begun
        if job.mode not in CHARGING:
            assert ran.not_2xx == ran.broken == 0, (contender.name, job.mode, ran)
        elif contender.house is None:
            charges_seen(self.upstream, job, ran)
        else:
            self.charges += settle(contender, self.upstream, job, ran, clients).sent
        return ran, spent

    def by_hand(self, door: Door, seconds: float) -> list[float]:
        """Have a door charge one bill after the other; return the time of each call, in µs."""
        bills = self.new_bills(door.contender)
        self.upstream.forget()
        took = door.times_us(bills.prefix, bills.period, seconds)
        self.agree(door.contender, bills.prefix, len(took))
        return took

    def agree(self, contender: Contender, prefix: str, answered: int) -> None:
        """See that the books agree where one call followed the other and all were answered."""
        if contender.house is not None:
            self.charges += accepted(contender, self.upstream, prefix, answered).sent
            return
        ran = Ran(answered, answered, 0, 0, 0, 0, 0)
        assert charges_seen(self.upstream, Job("charge", "", prefix), ran) == answered

    def on_schedule(
        self, contender: Contender, rate: float, seconds: float, clients: int = CLIENTS
    ) -> Seen:
        """Send new bills at `rate` a second, whatever the answers do; see that the books agree."""
        bills = self.new_bills(contender)
        host = contender.url.removeprefix("http://")
        make = post_charge(host, contender.token, bills.prefix, self.period)
        self.upstream.forget()
        seen = run_open(contender.url, make, rate=rate, seconds=seconds, connections=clients)
        assert set(seen.took_ms) == {200}, {s: len(t) for s, t in seen.took_ms.items()}
        if contender.house is not None:
            ran = Ran(seen.due, len(seen.took_ms[200]), seconds, 0, 0, 0, seen.broken)
            self.charges += settle(contender, self.upstream, bills, ran, clients).sent
        return seen
