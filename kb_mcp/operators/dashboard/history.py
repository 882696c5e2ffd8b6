"""History: what was decided in each of the last 24 hours, counted as the audit grows.

Floor: operators, beside the views. Each row is read once by this process, a bounded number at a
time, so that a page never walks an audit of millions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kb_mcp.instants import rfc3339
from kb_mcp.operators.reports.views import Views

HOUR_MS = 3_600_000
HOURS = 24
ROWS_MAX = 5_000


@dataclass(slots=True)
class History:
    """Refusals by hour and code. `whole` says that every row of the span was read."""

    views: Views
    whole: bool = False
    _refused: dict[str, Counter[str]] = field(default_factory=dict)
    _last_row: Any = None

    def catch_up(self) -> None:
        """Read on, at most ROWS_MAX rows. Raises: LedgerUnavailableError."""
        hours = self._hours()
        begun = self._last_row is not None
        start = {"after_row": self._last_row} if begun else {"since": f"{hours[0]}:00:00.000Z"}
        count = 0
        for row in self.views.records.audit(limit=ROWS_MAX, **start):
            count += 1
            self._last_row = row["row"]
            if row["decision"] == "refuse":
                codes = self._refused.setdefault(row["time"][:13], Counter())
                codes[row["code"] or ""] += 1
        self.whole = count < ROWS_MAX
        self._refused = {hour: self._refused[hour] for hour in hours if hour in self._refused}

    def refusals(self) -> list[tuple[str, int]]:
        """Return each hour, oldest first, with how many requests were refused in it."""
        return [(hour, self._refused.get(hour, Counter()).total()) for hour in self._hours()]

    def codes(self, most: int) -> list[tuple[str, int]]:
        """Return the codes that were refused most often."""
        total: Counter[str] = Counter()
        for codes in self._refused.values():
            total.update(codes)
        return total.most_common(most)

    def _hours(self) -> list[str]:
        now = self.views.now_ms()
        return [rfc3339(now - back * HOUR_MS)[:13] for back in range(HOURS - 1, -1, -1)]
