"""Metrics in Prometheus's text form, read from the store at each scrape.

Floor: operators, beside the admin API. Labels are ids and codes of ours, never a client's text or a
secret. The store counts and chooses; a scrape reads no more than it shows. All names begin with
`keybrake_`, all values are integers. Format: prometheus.io/docs/instrumenting/exposition_formats,
text version 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kb_mcp.operators.reports.views import KEY_STATUSES, Fullest
from kb_mcp.operators.sign_in import Access
from kb_mcp.proxy.edge.records import Spend
from kb_mcp.proxy.ledger.records import State
from kb_mcp.proxy.meters import Histogram, Measured, Meters
from kb_mcp.proxy.stores.gauges import KeyCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Labels as they stand between the braces, and the value.
Sample = tuple[str, int]


def labels(given: Mapping[str, str]) -> str:
    """Write labels as they stand between the braces of a sample, by which many may begin."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in given.items())


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of a family of one `kind`, a counter or a gauge."""
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} {kind}\n"
    for inside, value in samples:
        yield f"keybrake_{name}{{{inside}}} {value}\n"


def histograms(name: str, text: str, series: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    """Yield the lines of a family of histograms, each with labels of its own."""
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} histogram\n"
    for inside, histogram in series:
        for bound, count in histogram.cumulative():
            yield f'keybrake_{name}_bucket{{{inside},le="{bound}"}} {count}\n'
        yield f"keybrake_{name}_sum{{{inside}}} {histogram.total}\n"
        yield f"keybrake_{name}_count{{{inside}}} {histogram.count}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# What a scrape counts at most: it shares its event loop with charges under way.
ROWS_MAX = 50_000
# More keys than this have no series of their own: they would be too many for a scraper, too.
KEYS_MAX = 1_000
# Where there are more, which they are is decided so often: series that come and go cost a scraper
# more than those that stay.
CHOSEN_FOR_MS = 300_000
OPEN_STATES = (State.RESERVED, State.UNKNOWN, State.AWAITING_APPROVAL)
Readings = Mapping[str, Measured]
# The process that serves operators, beside its workers 1, 2, 3…
FIRST = "0"


async def no_workers() -> Readings:
    """Return what the workers of a process measured that has none."""
    return {}


@dataclass(slots=True)
class Metrics:
    """Counts audit rows since this process began to be scraped; reads the rest from the store.

    What a process measures itself stands under its own `worker`; `workers` asks the others.
    """

    fullest: Fullest
    access: Access
    meters: Meters | None = None
    workers: Callable[[], Awaitable[Readings]] = no_workers
    _counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _last_row: Any = None

    async def serve(self, request: Request) -> Response:
        """Answer a scrape from this machine, or one with an operator's token.

        Raises: InputError, LedgerUnavailableError.
        """
        if not self.access.local(request):
            self.access.bearer(request)
        return Response(await self._text(), headers={"content-type": CONTENT_TYPE})

    def begin(self) -> None:
        """Count audit rows from here on. Raises: LedgerUnavailableError."""
        self._last_row = self.fullest.views.records.newest_row()

    async def _text(self) -> str:
        await self._count_audit()
        now = self.fullest.views.now_ms()
        keys = await self.fullest.views.records.key_counts(now)
        snapshot = sum(each.count for each in keys if not each.rotated)
        spend = [(_window(row), row) for row in await self._spend()]
        left_out = max(snapshot - KEYS_MAX, 0)
        families = (
            family("info", "gauge", "What this store is bound to.", self._info()),
            family("operations", "gauge", "Operations without an end.", await self._open()),
            family("vault_keys", "gauge", "Vault keys by what they may do.", _statuses(keys)),
            family("vault_keys_left_out", "gauge", "Keys without series.", [("", left_out)]),
            family("spend_minor_units", "gauge", "Held in the running window.", _held(spend)),
            family("cap_minor_units", "gauge", "What the window may hold.", _of(spend, "cap")),
            family("cap_left_minor_units", "gauge", "What is left of it.", _of(spend, "left")),
            *self._log(),
            family("audit_rows_total", "counter", "Audit rows since start.", self._audited()),
        )
        own = {} if self.meters is None else {FIRST: self.meters.read()}
        measured = _measured(own | dict(await self.workers())) if own else ()
        return "".join(line for family in (*families, *measured) for line in family)

    async def _count_audit(self) -> None:
        if self._last_row is None:
            self.begin()
        found = await self.fullest.views.records.audit_counts(self._last_row, ROWS_MAX)
        self._counts.update(found.counts)
        self._last_row = found.last_row

    def _log(self) -> Iterator[Iterator[str]]:
        size = self.fullest.views.records.log_bytes()
        if size is not None:
            yield family("wal_bytes", "gauge", "Size of SQLite's write-ahead log.", [("", size)])

    def _info(self) -> Iterator[Sample]:
        yield labels({"mode": self.fullest.views.ledger.settings.mode}), 1

    async def _open(self) -> list[Sample]:
        counts = await self.fullest.views.records.open_operations()
        return [(labels({"state": state}), counts.get(state, 0)) for state in OPEN_STATES]

    async def _spend(self) -> list[Spend]:
        """Return the account's spend, and that of keys that serve or hold something."""
        rows, keys = await self.fullest.today(KEYS_MAX, CHOSEN_FOR_MS)
        return rows + [
            row for each, its in keys.values() if each.serves or each.windows for row in its
        ]

    def _audited(self) -> Iterator[Sample]:
        for (kind, decision, code), count in sorted(self._counts.items()):
            yield labels({"kind": kind, "decision": decision, "code": code}), count


def _statuses(keys: Iterable[KeyCounts]) -> Iterator[Sample]:
    counts = Counter[str]()
    for each in keys:
        counts[each.status] += each.count
    return ((labels({"status": status}), counts[status]) for status in KEY_STATUSES)


_GAUGES = (
    ("requests_in_flight", "in_flight", "Requests of agents under way."),
    ("ledger_waiting", "waiting", "Transactions that wait for their commit."),
    ("ledger_queue", "queued", "Those that no batch has taken yet."),
)
_HISTOGRAMS = (
    ("ledger_duration_ms", "ledger", "Milliseconds of a ledger transaction, until it is durable."),
    ("ledger_batch_size", "batches", "Transactions that were committed together."),
)


def _measured(readings: Readings) -> Iterator[Iterator[str]]:
    each = [(labels({"worker": worker}), reading) for worker, reading in readings.items()]
    yield family("processes", "gauge", "Processes that answered this scrape.", [("", len(each))])
    for name, field_name, text in _GAUGES:
        samples = [(inside, getattr(at, field_name)) for inside, at in each]
        yield family(name, "gauge", text, samples)
    for name, field_name, text in _HISTOGRAMS:
        yield histograms(name, text, [(inside, getattr(at, field_name)) for inside, at in each])
    sends = [
        (f"{inside},{labels({'ending': ending})}", sent)
        for inside, at in each
        for ending, sent in at.sends.items()
    ]
    yield histograms("send_duration_ms", "Milliseconds of a send to Stripe, by its end.", sends)


def _held(spend: Iterable[tuple[str, Spend]]) -> Iterator[Sample]:
    for inside, row in spend:
        for part in ("settled", "reserved"):
            yield f'{inside},part="{part}"', getattr(row, part)


def _of(spend: Iterable[tuple[str, Spend]], name: str) -> Iterator[Sample]:
    values = ((inside, getattr(row, name)) for inside, row in spend)
    return ((inside, value) for inside, value in values if value is not None)


def _window(row: Spend) -> str:
    return labels(
        {
            "scope": row.scope,
            "key": row.key_id or "",
            "window": row.window,
            "currency": row.currency,
        }
    )
