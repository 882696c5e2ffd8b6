"""The store's clock: never back, shared by a high-water mark, compared with Stripe's.

Floor: beside the stores. Milliseconds since 1970 UTC. The host's time arrives as a callable, so
that tests turn the clock and the sandbox lends its own.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import lru_cache

from kb_mcp.proxy.ledger.windows import day_of

SKEW_MAX_MS = 60_000
# An answer that took longer says nothing about the time: it may have lain in a suspended host.
WAITED_MAX_MS = 30_000


class StoreClock:
    """Tells the store's time, given the high-water mark that the store holds.

    `host_ms` is this host's clock as configured, `plain_ms` the same without
    KEYBRAKE_CLOCK_OFFSET: whoever moves the clock on purpose is not out of step with Stripe.
    `steady_ms` counts suspended time and never jumps: a clock that was set since Stripe's time
    was last heard shows at once, before anything is sent or voided by it.
    """

    def __init__(
        self,
        host_ms: Callable[[], int],
        plain_ms: Callable[[], int] | None = None,
        steady_ms: Callable[[], int] | None = None,
    ) -> None:
        """Start without knowledge of Stripe's time."""
        self._host_ms = host_ms
        self._plain_ms = plain_ms or host_ms
        self._steady_ms = steady_ms or host_ms
        # How far the steady clock is behind Stripe's, once that is known.
        self._behind_ms: int | None = None

    def observe(self, date: str | None, waited_ms: int = 0) -> None:
        """Compare the clock with the `Date` header of an answer from Stripe (whole seconds).

        `waited_ms` is how long the answer took, by a clock that counts suspended time.
        """
        if not date or waited_ms > WAITED_MAX_MS:
            return
        try:
            self._behind_ms = _read_date(date) - self._steady_ms()
        except (ValueError, TypeError):
            return

    @property
    def skew_ms(self) -> int:
        """How far this host is ahead of Stripe now, where that is known."""
        if self._behind_ms is None:
            return 0
        stripe_ms = self._steady_ms() + self._behind_ms
        return min(self._host_ms() - stripe_ms, self._plain_ms() - stripe_ms, key=abs)

    @property
    def skewed(self) -> bool:
        """Say whether this host and Stripe are more than a minute apart."""
        return abs(self.skew_ms) > SKEW_MAX_MS

    def stripe_ms(self) -> int:
        """Return Stripe's time as far as it is known, else this host's as it is."""
        if self._behind_ms is None:
            return self._plain_ms()
        return self._steady_ms() + self._behind_ms

    def now(self, high_water: int) -> int:
        """Return the time, which never runs behind `high_water`.

        Where this host's clock is known to be wild it is Stripe's: a send that is dated wrongly
        would be voided, or forgotten by recovery's look back, once the clock is right again.
        """
        skew_ms = self.skew_ms
        wild_ms = skew_ms if abs(skew_ms) > SKEW_MAX_MS else 0
        return max(self._host_ms() - wild_ms, high_water)

    def turning(self, high_water: int) -> bool:
        """Say whether a skewed clock is about to begin a day that the store has not seen."""
        return self.skewed and high_water > 0 and day_of(self._host_ms()) != day_of(high_water)


@lru_cache(maxsize=16)
def _read_date(date: str) -> int:
    """Return a `Date` header in milliseconds: many answers carry the same second."""
    return int(parsedate_to_datetime(date).timestamp()) * 1000
