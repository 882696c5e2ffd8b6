"""What really happened: sent = ledger = audit = upstream, or the run counts for nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from stage.contenders import Contender
from stage.load import Job, Ran
from stage.upstream import Upstream


@dataclass(frozen=True)
class Truth:
    """Distinct operations, four times; `cut` were in flight at the bell and asked for again."""

    sent: int
    ledger: int
    audit: int
    upstream: int
    cut: int

    @property
    def holds(self) -> bool:
        """Say whether all four agree."""
        return self.sent == self.ledger == self.audit == self.upstream


def settle(contender: Contender, upstream: Upstream, job: Job, ran: Ran, clients: int) -> Truth:
    """Ask again, as a client would, for what the end of the load cut off; then count.

    Nothing may have been charged twice, and nothing sent may be missing in any of the four books.
    """
    assert ran.broken == 0, ran
    assert ran.not_2xx == 0, ran
    numbers = range(job.first + 1, job.first + ran.sent + 1)
    cut = _missing(contender, upstream, job, numbers, clients)
    # wrk makes one request that it never sends, and cuts off one a client.
    assert len(cut) <= clients + 1, f"{len(cut)} of {ran.sent} are missing: {sorted(cut)[:5]}"
    again = sorted(cut | set(numbers[-clients:]))
    with httpx.Client(base_url=contender.url, timeout=30, trust_env=False) as client:
        for number in again:
            _ask_again(client, job, number)
    truth = _count(contender, upstream, job.prefix, len(numbers), len(cut))
    assert truth.holds, truth
    return truth


def accepted(contender: Contender, upstream: Upstream, prefix: str, answered: int) -> Truth:
    """Count what was charged where much was refused: exactly what was answered with 200."""
    _rest(contender)
    truth = _count(contender, upstream, prefix, answered, 0)
    assert truth.holds, truth
    return truth


def charges_seen(upstream: Upstream, job: Job, ran: Ran) -> int:
    """Return how many distinct charges a proxy without a ledger let through, none of them twice."""
    assert ran.broken == 0, ran
    assert ran.not_2xx == 0, ran
    marks = (f"-{job.prefix}-", f"cus_{job.prefix}n")  # of charges.lua, and of the bare tool

    def ours(seen: Counter[str]) -> dict[str, int]:
        return {key: times for key, times in seen.items() if any(mark in key for mark in marks)}

    own = ours(upstream.seen(lambda seen: len(ours(seen)) >= ran.answered))
    assert sum(own.values()) == len(own), "a charge arrived twice"
    assert ran.answered <= len(own) <= ran.sent, (ran, len(own))
    return len(own)


def body_of(job: Job, number: int) -> dict[str, str]:
    """Return the form of bill `number`, as charges.lua writes it."""
    return {
        "amount": "100",
        "currency": "usd",
        "customer": f"cus_{job.prefix}n{number}",
        "metadata[billing_period]": job.period,
    }


_REST_S = 30
# Both stores understand these; {prefix} is a run's own, letters and digits.
HELD = "SELECT count(*) FROM operations WHERE state = 'reserved'"
OPERATIONS = """
SELECT customer, upstream_name FROM operations
 WHERE customer LIKE 'cus_{prefix}n%' AND state = 'succeeded' AND final"""
AUDITED = """
SELECT operation_id, sum(CASE WHEN kind = 'decision' THEN 1 ELSE 0 END),
       sum(CASE WHEN kind = 'outcome' THEN 1 ELSE 0 END)
  FROM audit
 WHERE operation_id IN (SELECT id FROM operations WHERE customer LIKE 'cus_{prefix}n%')
   AND (kind <> 'decision' OR decision = 'proceed')
 GROUP BY operation_id"""


def _missing(
    contender: Contender, upstream: Upstream, job: Job, numbers: range, clients: int
) -> set[int]:
    """Return the numbers that the ledger has not, once it rests."""
    upstream.seen(lambda keys: keys.total() >= len(numbers) - clients - 1)
    _rest(contender)
    customers = {row[0] for row in _rows(contender, OPERATIONS, job.prefix)}
    return {number for number in numbers if f"cus_{job.prefix}n{number}" not in customers}


def _rows(contender: Contender, query: str, prefix: str) -> list[tuple[Any, ...]]:
    assert contender.house is not None
    return contender.house.rows(query.format(prefix=prefix))


def _rest(contender: Contender) -> None:
    """Wait until nothing is held any more: every send under way has its conclusion."""
    until = time.monotonic() + _REST_S
    while _rows(contender, HELD, "") != [(0,)] and time.monotonic() < until:
        time.sleep(0.05)


def _ask_again(client: httpx.Client, job: Job, number: int) -> None:
    headers = {"Authorization": f"Bearer {job.token}"}
    answer = client.post("/v1/charges", data=body_of(job, number), headers=headers)
    assert answer.status_code == 200, answer.text


def _count(contender: Contender, upstream: Upstream, prefix: str, expected: int, cut: int) -> Truth:
    operations = _rows(contender, OPERATIONS, prefix)
    audited = _rows(contender, AUDITED, prefix)
    whole = [row for row in audited if row[1:] == (1, 1)]
    names = {name for _, name in operations}
    seen = upstream.seen(lambda keys: names <= keys.keys())
    wrong = {name: seen[name] for name in names if seen[name] != 1}
    assert not wrong, f"not exactly one send each: {wrong}"
    return Truth(expected, len(operations), len(whole), len(names & seen.keys()), cut)
