"""The store's clock: what time it is, and whether that is certain enough to turn a day by.

Floor: beside the stores. Milliseconds since 1970 UTC. Three witnesses are compared: the host's
clock, the `Date` of Stripe's answers, and the boot clock, which only goes on. The high-water mark
in the store is the latest time that was certain: the time that is told never runs behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

from msgspec import Struct

from kb_mcp.instants import day_of

MARK: Final = "high_water_ms"
BOOT: Final = "clock_boot"
CONFIRMED: Final = "clock_confirmed"
DOUBT: Final = "clock_doubt"

AGREE_MS: Final = 60_000
MARK_EVERY_MS: Final = 1_000  # what is written may be dated this much later than the mark
# An answer that took longer says nothing about the time: it may have lain in a suspended host.
WAITED_MAX_MS: Final = 10_000
# Two answers that are this far apart, and tell the same boot time to within SAME_MS, are a clock.
APART_MS: Final = 30_000
SAME_MS: Final = 15_000
# A `Date` that did not move for this long is no clock: it is read as if none had come.
STANDS_STILL_MS: Final = 3_000
HEARD_FOR_MS: Final = 600_000
ON_PURPOSE_MS: Final = 1_000
# A `Date` outside these years is nobody's clock.
_YEARS: Final = range(2000, 2200)


class DateHeard(Struct, frozen=True):
    """One `Date` of Stripe: its own time, and the boot clock when it was asked and heard."""

    date_ms: int
    asked_at: int
    heard_at: int

    @property
    def ahead_ms(self) -> int:
        """How far Stripe's clock is ahead of the boot clock."""
        return self.date_ms - self.heard_at


class Doubt(Struct, frozen=True):
    """A span of the store's time that was told by a clock which was ahead; ms UTC, both ends in."""

    start: int
    end: int

    @classmethod
    def read(cls, text: str) -> Doubt | None:
        """Return what `text` of a fact means."""
        start, _, end = text.partition(" ")
        return cls(int(start), int(end)) if end else None

    @property
    def text(self) -> str:
        """The fact, as the store keeps it."""
        return f"{self.start} {self.end}"

    @classmethod
    def before(cls, mark: int, ahead_ms: int, known: Doubt | None) -> Doubt:
        """Return the times before `mark`, up to `ahead_ms` too late, together with those `known`.

        `ahead_ms` comes from the boot clock: the distance to `mark` shrinks as time passes.
        """
        start = mark - ahead_ms
        return (
            cls(start, mark)
            if known is None
            else cls(min(start, known.start), max(mark, known.end))
        )

    def ahead_ms(self, at_ms: int) -> int:
        """Return by how much `at_ms`, as it was written, may be later than it really was."""
        written = self.start <= at_ms < self.end + MARK_EVERY_MS
        return self.end - self.start if written else 0


class StoredTime(Struct, frozen=True):
    """What the store holds about the time; `of_facts` reads it, `StoreClock.facts` writes it.

    `mark` is the latest time that was certain; `boot` says which boot of which machine wrote it,
    and what its boot clock said then; `confirmed` changes with each word of an operator. Times in
    `doubt` were written by a clock that was ahead, by the length of that span at most.
    """

    mark: int = 0
    boot: str = ""
    confirmed: str = ""
    doubt: Doubt | None = None

    @classmethod
    def of_facts(cls, facts: Mapping[str, str | None]) -> StoredTime:
        """Return what the facts of a store say about the time."""
        return cls(
            mark=int(facts.get(MARK) or 0),
            boot=facts.get(BOOT) or "",
            confirmed=facts.get(CONFIRMED) or "",
            doubt=Doubt.read(facts.get(DOUBT) or ""),
        )


class Told(Struct, frozen=True):
    """What time it is. `dispute` says why that is not certain, and is empty where it is.

    While it is disputed, `now` goes on from the last certain time with the boot clock, and
    `latest` is the latest that a witness says; else both are the same. `turning` says that nothing
    may be sent: the witnesses do not agree on the day, or no time was certain here yet. `agreed`
    says that Stripe and the host tell the same time, `alone` that the host's word is all there is,
    `unheard` that Stripe has not answered since this process began. `doubt` is what was written by
    a clock that was ahead.
    """

    now: int
    latest: int
    dispute: str = ""
    turning: bool = False
    agreed: bool = False
    alone: bool = False
    unheard: bool = False
    doubt: Doubt | None = None


class StoreClock:
    """Tells the store's time, given the high-water mark that the store holds.

    `host_ms` is this host's clock as configured, `plain_ms` the same without
    KEYBRAKE_CLOCK_OFFSET: whoever moves the clock on purpose is not out of step with Stripe.
    `steady_ms` is the boot clock: it counts suspended time and never jumps. `followed` says that
    the host's clock follows the sandbox's own, which is then the truth. `boot_id` names this boot
    of this machine, where that is known: what has passed while no process ran is known then.
    """

    def __init__(
        self,
        host_ms: Callable[[], int],
        plain_ms: Callable[[], int] | None = None,
        steady_ms: Callable[[], int] | None = None,
        followed: Callable[[], bool] = lambda: False,
        boot_id: str = "",
    ) -> None:
        """Start without knowledge of Stripe's time."""
        self.host_ms = host_ms
        self._plain_ms = plain_ms or host_ms
        self._steady_ms = steady_ms or host_ms
        self.followed = followed
        self._boot_id = boot_id
        self._newest: DateHeard | None = None
        self._first: DateHeard | None = None  # of the answers that agree with the newest
        self._stands_still = False
        self._mark = 0  # the latest time that was certain, here or as the store says
        self._carried: int | None = None  # how far the last certain time is ahead of the boot clock
        self._began_at = self._steady_ms()
        self._answered = False
        self._confirmed = ""
        self._doubt: Doubt | None = None
        self._doubt_stored: Doubt | None = None

    def observe(self, date: str | None, waited_ms: int = 0) -> None:
        """Take the `Date` header of an answer from Stripe (whole seconds), or that it has none.

        `waited_ms` is how long the answer took, by the boot clock.
        """
        self._answered = True
        if not date or waited_ms > WAITED_MAX_MS:
            return
        try:
            told_ms = _read_date(date)
        except (ValueError, TypeError):
            return
        heard_at = self._steady_ms()
        new = DateHeard(told_ms, heard_at - waited_ms, heard_at)
        last, first = self._newest, self._first
        if last is not None and last.date_ms == new.date_ms:
            self._stands_still |= new.asked_at - last.heard_at >= STANDS_STILL_MS
            # Of answers with the same second the first one says the most.
            return
        self._stands_still = False
        if first is None or abs(new.ahead_ms - first.ahead_ms) > SAME_MS:
            self._first = new
        self._newest = new

    def tell(self, stored: StoredTime) -> Told:
        """Return the time by which a transaction decides, given what the store holds about it."""
        if stored.confirmed != self._confirmed:
            self._confirmed, self._mark, self._carried = stored.confirmed, 0, None
            self._began_at = self._steady_ms()
        self._mark = max(self._mark, stored.mark)
        self._doubt = self._doubt_stored = stored.doubt
        carried = self._carried_over(stored)
        if carried is not None:
            # Another process of this machine may have been certain of the time since this one was.
            if self._carried is not None and carried < self._carried - AGREE_MS:
                self._mark = stored.mark  # what this one was certain of is in no row of the store
            self._carried = carried
        told = self._tell()
        self._doubt = told.doubt
        # Before anything was billed, a host that is alone and wrong can be set right.
        if not told.dispute and (self._mark or not told.alone):
            self._mark, self._carried = told.now, told.now - self._steady_ms()
        return told

    def facts(self, told: Told, *, raised: bool) -> dict[str, str]:
        """Return what the store is to hold after `told`; `raised` says that it raises the mark."""
        facts = {}
        if told.doubt is not None and told.doubt != self._doubt_stored:
            facts[DOUBT] = told.doubt.text
        if not raised:
            return facts
        facts[MARK] = str(told.now)
        if self._boot_id and not told.dispute:
            facts[BOOT] = f"{self._boot_id} {self._steady_ms()} {told.now}"
        if told.agreed and self._host_rules:
            # The dispute is over, and so is the operator's word about it.
            facts[CONFIRMED] = f"until {told.now}"
        return facts

    def word_of_operator(self, stored: StoredTime) -> dict[str, str]:
        """Return the facts that make this host's time the store's: an operator said so."""
        host_ms = self.host_ms()
        facts = {MARK: str(host_ms), BOOT: "", CONFIRMED: str(host_ms)}
        if self._boot_id:
            # The word is about the clock as it is: one that is set later is not what was meant.
            facts[BOOT] = f"{self._boot_id} {self._steady_ms()} {host_ms}"
        carried = self._carried_over(stored)
        since = stored.mark if carried is None else max(stored.mark, self._steady_ms() + carried)
        if since > host_ms + AGREE_MS:
            facts[DOUBT] = Doubt.before(stored.mark, since - host_ms, stored.doubt).text
        return facts

    def may_be_ahead_ms(self, at_ms: int) -> int:
        """Return by how much `at_ms`, as the store has it, may be later than it was at Stripe."""
        doubted = 0 if self._doubt is None else self._doubt.ahead_ms(at_ms)
        return max(doubted, self._tell().now - self.stripe_ms(), 0)

    def now(self, stored_mark: int = 0) -> int:
        """Return the time as the last decision of this process knew it, carried on until now."""
        return max(self._tell().now, stored_mark)

    def times(self) -> tuple[int, int]:
        """Return the time, and the latest that any witness tells: the same where they agree."""
        told = self._tell()
        return told.now, told.latest

    @property
    def dispute(self) -> str:
        """Why the time is not certain, or nothing."""
        return self._tell().dispute

    @property
    def heard(self) -> bool:
        """Say whether Stripe has told its time lately."""
        return self._stripe_ms(self._steady_ms()) is not None

    @property
    def unsure(self) -> bool:
        """Say whether Stripe should be asked for the time before anything is decided by it."""
        return not self.followed() and (not self._answered or bool(self.dispute))

    @property
    def skew_ms(self) -> int:
        """How far this host is ahead of Stripe, by the newest `Date`; 0 where there is none."""
        if self._newest is None:
            return 0
        stripe_ms = self._steady_ms() + self._newest.ahead_ms
        return min(self.host_ms() - stripe_ms, self._plain_ms() - stripe_ms, key=abs)

    def _tell(self) -> Told:
        steady, host, mark = self._steady_ms(), self.host_ms(), self._mark
        if self.followed():
            now = max(host, mark)
            return Told(now, now)
        stripe = self._stripe_ms(steady)
        agreed = stripe is not None and abs(self.skew_ms) <= AGREE_MS
        certain, dispute, doubt = host, "", self._doubt
        if stripe is not None and not agreed and not self._host_rules:
            certain, dispute = stripe, self._why_not(stripe, steady)
        elif not agreed:
            dispute = self._why_not_alone(host, steady)
        on_purpose = abs(host - self._plain_ms()) >= ON_PURPOSE_MS
        ahead_ms = self._since_certain(steady) - certain
        if not dispute and certain < mark - AGREE_MS and not on_purpose:
            behind_s = (mark - certain) // 1000
            dispute = f"the latest time that the store has seen is {behind_s} s ahead"
            doubt = Doubt.before(mark, ahead_ms, doubt)
        if dispute:
            # What goes on is the last certain time; the latest that is told may be another day's.
            now = self._since_certain(steady)
            said = [now, host, *([] if stripe is None else [stripe])]
            turning = self._carried is None or any(day_of(each) != day_of(mark) for each in said)
            return Told(now, max(said), dispute, turning, doubt=doubt)
        if self._carried is not None and ahead_ms > AGREE_MS and not on_purpose:
            # It was set right again: less time has passed than the boot clock says.
            doubt = Doubt.before(mark, ahead_ms, doubt)
        now = max(certain, mark)
        return Told(
            now, now, agreed=agreed, alone=certain == host and not agreed, doubt=doubt,
            unheard=not (self._answered or self._host_rules),
        )  # fmt: skip

    def stripe_ms(self) -> int:
        """Return Stripe's time as far as it is known, else this host's as it is."""
        if self.followed():
            return self.host_ms()
        last = self._newest
        return self._plain_ms() if last is None else self._steady_ms() + last.ahead_ms

    def _carried_over(self, stored: StoredTime) -> int | None:
        """Return how far the last certain time is ahead of the boot clock, if this boot had one."""
        parts = stored.boot.split(" ")
        if not self._boot_id or parts[0] != self._boot_id:
            return None
        return int(parts[2]) - int(parts[1])

    def _since_certain(self, steady: int) -> int:
        """Return the last certain time and what has passed since, by the boot clock.

        What passed between the mark and the start of this process is not known, and left out.
        """
        if self._carried is not None:
            return max(steady + self._carried, self._mark)
        return self._mark + steady - self._began_at if self._mark else self.host_ms()

    def _stripe_ms(self, steady: int) -> int | None:
        """Return Stripe's time, where a `Date` that moves came within the last ten minutes."""
        last = self._newest
        if last is None or self._stands_still or steady - last.heard_at > HEARD_FOR_MS:
            return None
        return steady + last.ahead_ms

    def _why_not(self, stripe: int, steady: int) -> str:
        """Return why Stripe's time, which is not the host's, does not rule; or nothing."""
        last, first = self._newest, self._first
        skew_s = self.skew_ms // 1000
        apart = f"this host's clock is {abs(skew_s)} s {'ahead of' if skew_s > 0 else 'behind'} "
        if last is None or first is None or last.asked_at - first.heard_at < APART_MS:
            return f"{apart}Stripe's"
        if not self._mark:
            return ""
        off_ms = stripe - self._since_certain(steady)
        # After a boot nobody knows how much has passed: then Stripe's time may be later, only.
        if off_ms > AGREE_MS or (off_ms < -AGREE_MS and self._carried is not None):
            return f"{apart}Stripe's, and Stripe's does not go with the time that has passed"
        return ""

    def _why_not_alone(self, host: int, steady: int) -> str:
        """Return why the host's clock, where Stripe tells no time, does not rule; or nothing."""
        last, off_ms = self._newest, 0
        if self._host_rules:
            off_ms = 0 if self._carried is None else host - steady - self._carried
        elif last is not None and not self._stands_still:
            off_ms = self.skew_ms
        if abs(off_ms) <= AGREE_MS:
            return ""
        return f"this host's clock is {off_ms // 1000} s off the time that has passed"

    @property
    def _host_rules(self) -> bool:
        """Say whether an operator said that the host's clock is right."""
        return self._confirmed.isdigit()


@lru_cache(maxsize=16)
def _read_date(date: str) -> int:
    """Return a `Date` header in milliseconds: many answers carry the same second."""
    told = parsedate_to_datetime(date)
    if told.year not in _YEARS:
        raise ValueError(f"no clock tells the year {told.year}")
    return int(told.timestamp()) * 1000
