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

from kb_mcp.operators.reports.views import Fullest, by_status
from kb_mcp.operators.sign_in import Access
from kb_mcp.proxy.edge.records import Spend
from kb_mcp.proxy.ledger.records import State
from kb_mcp.proxy.meters import Histogram, Measured, Meters

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
# Labels as they stand between the braces, and the value.
Sample = tuple[str, int | Histogram]
# Name, kind (counter, gauge or histogram), what it says, and its samples.
Family = tuple[str, str, str, Iterable[Sample]]


def labels(**given: str) -> str:
    """Write labels as they stand between the braces of a sample, by which many may begin."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in given.items())


def write(families: Iterable[Family]) -> Iterator[str]:
    """Yield the lines of all families."""
    for name, kind, text, samples in families:
        yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} {kind}\n"
        for inside, value in samples:
            if isinstance(value, int):
                yield f"keybrake_{name}{{{inside}}} {value}\n"
                continue
            for bound, count in value.cumulative():
                yield f'keybrake_{name}_bucket{{{inside},le="{bound}"}} {count}\n'
            yield f"keybrake_{name}_sum{{{inside}}} {value.total}\n"
            yield f"keybrake_{name}_count{{{inside}}} {value.count}\n"


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


@dataclass(slots=True)
class Metrics:
    """Counts audit rows since this process began to be scraped; reads the rest from the store.

    What a process measures itself stands under its own `worker`; `workers` asks the others.
    """

    fullest: Fullest
    access: Access
    meters: Meters
    workers: Callable[[], Awaitable[Readings]]
    _counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _last_row: Any = field(init=False)

    def __post_init__(self) -> None:
        """Count audit rows from here on. Raises: LedgerUnavailableError."""
        self._last_row = self.fullest.views.records.newest_row()

    async def serve(self, request: Request) -> Response:
        """Answer a scrape from this machine, or one with an operator's token.

        Raises: InputError, LedgerUnavailableError.
        """
        if not self.access.local(request):
            self.access.bearer(request)
        return Response(await self._text(), headers={"content-type": CONTENT_TYPE})

    async def _text(self) -> str:
        audited, spend = await self._audited(), await self._spend()
        views, records = self.fullest.views, self.fullest.views.records
        held, keys = await records.open_operations(), await records.key_counts(views.now_ms())
        left_out = sum(each.count for each in keys if not each.rotated) - KEYS_MAX
        log_bytes, mode = records.log_bytes(), views.ledger.settings.mode
        states = [(labels(state=each), held.get(each, 0)) for each in OPEN_STATES]
        statuses = [(labels(status=each), count) for each, count in by_status(keys).items()]
        parts = [
            (f'{inside},part="{part}"', getattr(row, part))
            for inside, row in spend
            for part in ("settled", "reserved")
        ]
        caps = [(inside, row.cap) for inside, row in spend if row.cap is not None]
        left = [(inside, row.left) for inside, row in spend if row.left is not None]
        families: list[Family] = [
            ("info", "gauge", "What this store is bound to.", [(labels(mode=mode), 1)]),
            ("operations", "gauge", "Operations without an end.", states),
            ("vault_keys", "gauge", "Vault keys by what they may do.", statuses),
            ("vault_keys_left_out", "gauge", "Keys without series.", [("", max(left_out, 0))]),
            ("spend_minor_units", "gauge", "Held in the running window.", parts),
            ("cap_minor_units", "gauge", "What the window may hold.", caps),
            ("cap_left_minor_units", "gauge", "What is left of it.", left),
            ("audit_rows_total", "counter", "Audit rows since start.", audited),
        ]
        if log_bytes is not None:
            text = "Size of SQLite's write-ahead log."
            families.append(("wal_bytes", "gauge", text, [("", log_bytes)]))
        readings = {FIRST: self.meters.read(), **await self.workers()}
        return "".join(write([*families, *_measured(readings)]))

    async def _audited(self) -> list[Sample]:
        """Count the audit rows written since the last scrape, and return all that were counted."""
        found = await self.fullest.views.records.audit_counts(self._last_row, ROWS_MAX)
        self._counts.update(found.counts)
        self._last_row = found.last_row
        return [
            (labels(kind=kind, decision=decision, code=code), count)
            for (kind, decision, code), count in sorted(self._counts.items())
        ]

    async def _spend(self) -> list[tuple[str, Spend]]:
        """Return the account's spend, and that of keys that serve or hold something, by labels."""
        rows, keys = await self.fullest.today(KEYS_MAX, CHOSEN_FOR_MS)
        rows += [row for key, its in keys.values() if key.serves or key.windows for row in its]
        return [
            (
                labels(
                    scope=row.scope, key=row.key_id or "", window=row.window, currency=row.currency
                ),
                row,
            )
            for row in rows
        ]


def _measured(readings: Readings) -> list[Family]:
    """Return the families of what processes measure themselves, with a label for each process."""
    each = [(labels(worker=worker), reading) for worker, reading in readings.items()]
    sends = [
        (f"{inside},{labels(ending=ending)}", sent)
        for inside, at in each
        for ending, sent in at.sends.items()
    ]

    def of(name: str) -> list[Sample]:
        return [(inside, getattr(at, name)) for inside, at in each]

    took = "Milliseconds of a ledger transaction, until it is durable."
    return [
        ("processes", "gauge", "Processes that answered this scrape.", [("", len(each))]),
        ("requests_in_flight", "gauge", "Requests of agents under way.", of("in_flight")),
        ("ledger_waiting", "gauge", "Transactions that wait for their commit.", of("waiting")),
        ("ledger_queue", "gauge", "Those that no batch has taken yet.", of("queued")),
        ("ledger_duration_ms", "histogram", took, of("ledger")),
        (
            "ledger_batch_size",
            "histogram",
            "Transactions that were committed together.",
            of("batches"),
        ),
        ("send_duration_ms", "histogram", "Milliseconds of a send to Stripe, by its end.", sends),
    ]
