"""Metrics in Prometheus's text form, read from the store at each scrape.

Floor: wing B, beside the admin API. Labels are ids and codes of ours, never a client's text or a
secret. Format: prometheus.io/docs/instrumenting/exposition_formats, text version 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from kb_mcp.proxy.ledger import State
from kb_mcp.proxy.ops.access import Access
from kb_mcp.proxy.ops.meters import Histogram, Meters, Reading
from kb_mcp.proxy.ops.views import KEY_STATUSES, Views, key_status
from kb_mcp.proxy.records import Record
from kb_mcp.proxy.windows import day_of, rfc3339

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# What a scrape reads at most: it shares its event loop with charges under way.
ROWS_MAX = 20_000
OPEN_MAX = 1000
OPEN_STATES = (State.RESERVED, State.UNKNOWN, State.AWAITING_APPROVAL)
Sample = tuple[dict[str, str], int]
Readings = Mapping[str, Reading]
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

    views: Views
    access: Access
    meters: Meters | None = None
    workers: Callable[[], Awaitable[Readings]] = no_workers
    _counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _last_row: int | None = None

    async def serve(self, request: Request) -> Response:
        """Answer a scrape from this machine, or one with an operator's token.

        Raises: InputError, LedgerUnavailableError.
        """
        if not self.access.local(request):
            self.access.bearer(request)
        return Response(await self._text(), headers={"content-type": CONTENT_TYPE})

    def begin(self) -> None:
        """Count audit rows from here on. Raises: LedgerUnavailableError."""
        newest = next(iter(self.views.records.audit(limit=1, newest_first=True)), None)
        self._last_row = 0 if newest is None else newest["row"]

    async def _text(self) -> str:
        self._count_audit()
        today = day_of(self.views.now_ms())
        spend = await self.views.spend(today)
        families = (
            _family("info", "gauge", "What this store is bound to.", self._info()),
            _family("operations", "gauge", "Operations without an end.", await self._open()),
            _family("vault_keys", "gauge", "Vault keys by what they may do.", await self._keys()),
            _family("spend_minor_units", "gauge", "Held in the running window.", _held(spend)),
            _family("cap_minor_units", "gauge", "What the window may hold.", _of(spend, "cap")),
            _family("cap_left_minor_units", "gauge", "What is left of it.", _of(spend, "left")),
            _family("audit_rows_total", "counter", "Audit rows since start.", self._audited()),
        )
        own = {} if self.meters is None else {FIRST: self.meters.read()}
        measured = _measured(own | dict(await self.workers())) if own else ()
        return "".join(line for family in (*families, *measured) for line in family)

    def _count_audit(self) -> None:
        if self._last_row is None:
            self.begin()
        rows = self.views.records.audit(limit=ROWS_MAX, after_row=self._last_row)
        for row in rows:
            self._counts[row["kind"], row["decision"] or "", row["code"] or ""] += 1
            self._last_row = row["row"]

    def _info(self) -> Iterator[Sample]:
        yield {"mode": self.views.ledger.settings.mode}, 1

    async def _open(self) -> list[Sample]:
        return [
            ({"state": state.value}, len(await self.views.operations(OPEN_MAX, state=state.value)))
            for state in OPEN_STATES
        ]

    async def _keys(self) -> list[Sample]:
        now = rfc3339(self.views.now_ms())
        counts = Counter(key_status(key, now) for key in await self.views.keys())
        return [({"status": status}, counts[status]) for status in KEY_STATUSES]

    def _audited(self) -> Iterator[Sample]:
        for (kind, decision, code), count in sorted(self._counts.items()):
            yield {"kind": kind, "decision": decision, "code": code}, count


def _measured(readings: Readings) -> Iterator[Iterator[str]]:
    each = [({"worker": worker}, reading) for worker, reading in readings.items()]
    yield _family("processes", "gauge", "Processes that answered this scrape.", [({}, len(each))])
    flight = [(labels, at.in_flight) for labels, at in each]
    yield _family("requests_in_flight", "gauge", "Requests of agents under way.", flight)
    waiting = [(labels, at.waiting) for labels, at in each]
    yield _family("ledger_waiting", "gauge", "Transactions that wait for their commit.", waiting)
    queued = [(labels, at.queued) for labels, at in each]
    yield _family("ledger_queue", "gauge", "Those that no batch has taken yet.", queued)
    text = "Milliseconds of a ledger transaction, until it is durable."
    yield _histogram("ledger_duration_ms", text, [(labels, at.ledger) for labels, at in each])
    text = "Transactions that were committed together."
    yield _histogram("ledger_batch_size", text, [(labels, at.batches) for labels, at in each])
    sends = [
        ({**labels, "ending": ending}, sent)
        for labels, at in each
        for ending, sent in at.sends.items()
    ]
    yield _histogram("send_duration_ms", "Milliseconds of a send to Stripe, by its end.", sends)


def _histogram(
    name: str, text: str, series: Iterable[tuple[dict[str, str], Histogram]]
) -> Iterator[str]:
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} histogram\n"
    for labels, histogram in series:
        for bound, count in histogram.cumulative():
            yield _line(f"{name}_bucket", {**labels, "le": bound}, count)
        yield _line(f"{name}_sum", labels, histogram.total)
        yield _line(f"{name}_count", labels, histogram.count)


def _held(spend: Iterable[Record]) -> Iterator[Sample]:
    for row in spend:
        for part in ("settled", "reserved"):
            yield {**_window(row), "part": part}, row[part]


def _of(spend: Iterable[Record], name: str) -> Iterator[Sample]:
    return ((_window(row), row[name]) for row in spend if row[name] is not None)


def _window(row: Record) -> dict[str, str]:
    return {
        "scope": row["scope"],
        "key": row["key_id"] or "",
        "window": row["window"],
        "currency": row["currency"],
    }


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} {kind}\n"
    for labels, value in samples:
        yield _line(name, labels, value)


def _line(name: str, labels: Mapping[str, str], value: int) -> str:
    inside = ",".join(f'{label}="{_escaped(shown)}"' for label, shown in labels.items())
    return f"keybrake_{name}{{{inside}}} {value}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
