"""A world: one store file, two processes on it, Stripe, a seed; and what is true of it so far."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random  # noqa: TID251 everything is drawn from one seed
from typing import Any

from msgspec.structs import astuple

from kb_mcp.proxy.access.policy import Policy, dump_policy
from kb_mcp.proxy.access.tokens import mint
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import KeyId, Lineage, LineageId, VaultKey
from kb_mcp.proxy.ledger.snapshot import StoreSettings
from kb_mcp.proxy.stores import group_commit
from kb_mcp.proxy.stores.binding import Binds, bind
from kb_mcp.proxy.stores.rows import load_queries, upsert
from kb_mcp.proxy.stores.sqlite.database import migrate
from kb_mcp.proxy.stripe.messages import UpstreamRequest
from tests.faults.checks import Mirror, ViolationError
from tests.faults.dates import Dates, TrueTime
from tests.faults.gates import Gates
from tests.faults.loop import SimulatedLoop
from tests.faults.process import Place, Process
from tests.faults.refund_books import RefundBooks
from tests.faults.store import DEATHS, DISK_FAULTS, Plan, make_template
from tests.faults.stripe import HOUR, MINUTE, SECOND, SimulatedStripe

DAY_MS = 24 * HOUR
LIVENESS = "gone_owners"  # how a store learns who is gone: from /proc, were these real
# 2026-11-24, some hours or some seconds before a midnight.
MIDNIGHT_MS = 1_795_564_800_000
BEGINNINGS = (10 * SECOND, 20 * MINUTE, 90 * MINUTE, 12 * HOUR)
CEILINGS = {"usd": 10_000, "eur": 6_500}
CARDS_SHARE, CAPTURES_SHARE = 0.3, 0.2  # of the seeds
REFUND_CEILINGS = {"usd": 8_000, "eur": 6_500}
SETTINGS = StoreSettings(
    account="simulated", mode="test", ceilings=CEILINGS, refund_ceilings=REFUND_CEILINGS
)


@dataclass(frozen=True, slots=True)
class Key:
    """A vault key that callers hold."""

    id: KeyId
    lineage: LineageId
    token: str
    policy: Policy


@dataclass(slots=True)
class Odds:
    """How much goes wrong in this seed; in thousandths per flush."""

    die: int
    disk: int


@dataclass(slots=True)
class Simulation:
    """Everything of one seed. `crashed_at` collects where processes died.

    `offset_ms` is how far the clock of the host, which all processes share, is from the truth.
    `keys` charge, `refund_keys` give back. `aside`, `back`, `cards` and `later` are streams
    of chance of their own, for operators, refunds, payment methods and captures, so that a seed
    without them plays as it always did.
    """

    seed: int
    chance: Random
    loop: SimulatedLoop
    stripe: SimulatedStripe
    path: Path
    keys: list[Key]
    refund_keys: list[Key]
    mirror: Mirror
    odds: Odds
    pauses: tuple[tuple[int, int], ...] = ((0, 1),)
    processes: list[Process] = field(default_factory=list)
    incarnations: int = 0
    offset_ms: int = 0
    trace: list[str] = field(default_factory=list)
    crashed_at: list[str] = field(default_factory=list)
    commits: int = 0
    aside: Random = field(default_factory=Random)
    back: Random = field(default_factory=Random)
    cards: Random = field(default_factory=Random)
    later: Random = field(default_factory=Random)
    true_time: TrueTime = field(default_factory=TrueTime)
    refunding: bool = False
    showing_cards: bool = False
    authorising: bool = False

    @property
    def keys_of_all(self) -> list[list[Key]]:
        """The keys that are used in this seed, by what they are for."""
        return [self.keys, self.refund_keys] if self.refunding else [self.keys]

    def log(self, text: str) -> None:
        self.trace.append(f"{self.loop.now_ms:>12} ms  {text}")

    def start(self, name: str) -> Process:
        """Start a process called `name`; each start has an owner name of its own."""
        self.incarnations += 1
        process = Process(
            name=name,
            owner=f"{name}.{self.incarnations}",
            place=Place(
                path=self.path,
                loop=self.loop,
                chance=self.chance,
                stripe=self.stripe,
                settings=SETTINGS,
                plan=self._plan,
                host_ms=lambda: self.stripe.now_ms + self.offset_ms,
                on_send=self._sent,
            ),
        )
        process.ledger.on_death = lambda where: self.end(process, where)
        process.ledger.writer.on_commit = lambda: self._committed(process)
        process.ledger.writer.on_integrity = self._broken
        self.processes.append(process)
        self.log(f"{process.owner} starts")
        return process

    def end(self, process: Process, why: str) -> None:
        """End `process` at once."""
        if not process.alive:
            return
        places = process.end()
        self.processes.remove(process)
        self.crashed_at += [why, *places]
        self.log(f"{process.owner} dies: {why}; in {', '.join(places) or 'nothing'}")

    def fail(self, what: str) -> None:
        """Stop: an invariant does not hold."""
        raise ViolationError(self.seed, what, self.trace)

    def complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the loop complains of; a store that fails while nobody waits is no fault."""
        error = context.get("exception")
        if not isinstance(error, LedgerUnavailableError):
            self.mirror.broken.append(f"{context['message']}: {error!r}")

    def _plan(self) -> Plan:
        drawn = self.chance.randrange(1000)
        if drawn < self.odds.die:
            return Plan(self.chance.choice(DEATHS))
        if drawn < self.odds.die + self.odds.disk:
            return Plan(self.chance.choice(DISK_FAULTS))
        return Plan()

    def _sent(self, request: UpstreamRequest) -> None:
        self.mirror.note_send(request.idempotency_key or "")

    def _committed(self, process: Process) -> None:
        self.commits += 1
        snapshot = process.ledger.snapshot
        if snapshot is not None:
            process.ledger.snapshot = None
            off = self.true_time.check(self, process, snapshot)
            if off:
                self.mirror.broken.append(off)
            for line in self.mirror.note_commit(snapshot):
                self.log(f"  {process.owner} commits {line}")

    def _broken(self, what: str) -> None:
        self.mirror.broken.append(f"a constraint of the schema had to stop a step: {what}")


@contextmanager
def new_world(seed: int) -> Iterator[Simulation]:
    """Make the world of `seed`, and take it apart afterwards."""
    chance = Random(seed)
    loop = SimulatedLoop(chance)
    trace: list[str] = []
    # A stream of its own: what a seed draws for the rest does not depend on it.
    aside = Random(f"aside {seed}")
    cards, later = Random(f"cards {seed}"), Random(f"later {seed}")
    stripe = SimulatedStripe(
        loop=loop,
        chance=chance,
        began_ms=MIDNIGHT_MS - chance.choice(BEGINNINGS),
        log=trace.append,
        dates=Dates(aside),
    )
    template, keys = _template()
    refund_keys = [key for key in keys if "POST /v1/refunds" in key.policy.allow]
    rough = chance.random()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        path.write_bytes(template)
        simulation = Simulation(
            seed=seed,
            chance=chance,
            loop=loop,
            stripe=stripe,
            path=path,
            keys=[key for key in keys if key not in refund_keys],
            refund_keys=refund_keys,
            mirror=_mirror(keys, stripe),
            aside=aside,
            back=Random(f"back {seed}"),
            cards=cards,
            later=later,
            showing_cards=cards.random() < CARDS_SHARE,
            authorising=later.random() < CAPTURES_SHARE,
            odds=Odds(die=int(25 * rough), disk=int(40 * chance.random())),
        )
        stripe.log = simulation.log
        loop.set_exception_handler(simulation.complain)
        live = _Liveness(simulation)
        kept = getattr(group_commit, LIVENESS)
        setattr(group_commit, LIVENESS, live.gone_owners)
        try:
            yield simulation
        finally:
            setattr(group_commit, LIVENESS, kept)
            for process in list(simulation.processes):
                simulation.end(process, "the end")
            _drain(loop)


class _Liveness:
    """Who is gone, in place of /proc: the owners are not processes of this host."""

    def __init__(self, simulation: Simulation) -> None:
        self._world = simulation

    def gone_owners(self, owners: Any, mine: str) -> frozenset[str]:
        alive = {process.owner for process in self._world.processes}
        return frozenset(owner for owner in owners if owner not in alive and owner != mine)


def _mirror(keys: Iterable[Key], stripe: SimulatedStripe) -> Mirror:
    policies = {key.lineage: key.policy for key in keys}
    lineage_of: dict[str, LineageId] = {key.id: key.lineage for key in keys}
    books = RefundBooks(stripe, policies, lineage_of)
    return Mirror(policies, CEILINGS, REFUND_CEILINGS, Gates(policies, lineage_of), books)


def _drain(loop: SimulatedLoop) -> None:
    """Let cancelled tasks end, so that nothing is left pending."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


@cache
def _template() -> tuple[bytes, tuple[Key, ...]]:
    """Return a migrated, bound store with keys that charge, and keys that refund.

    The second key of each kind is the heir of the first: they are one lineage.
    """
    chance = Random(0)
    made: list[Key] = []
    rows: list[tuple[VaultKey, Lineage]] = []
    for policy, heir_of in (*_charging(), *_refunding()):
        minted = mint("test", chance.randbytes)
        lineage = LineageId(minted.id) if heir_of is None else made[heir_of].lineage
        made.append(Key(minted.id, lineage, minted.token, policy))
        row = VaultKey(
            id=minted.id, lineage_id=lineage, token_hash=minted.token_hash, mode="test",
            role=policy.role, label=None, agent=None, policy=dump_policy(policy),
            created_at=MIDNIGHT_MS - DAY_MS, expires_at=None,
        )  # fmt: skip
        rows.append((row, Lineage(lineage)))

    def make(connection: sqlite3.Connection) -> None:
        migrate(connection)
        bind(connection, load_queries("sqlite"), SETTINGS, {}, Binds.LIMITS, {})
        for row, lineage in rows:
            connection.execute(upsert("lineages"), astuple(lineage))
            connection.execute(upsert("keys"), astuple(row))

    return make_template(make), tuple(made)


def _charging() -> tuple[tuple[Policy, int | None], ...]:
    common: dict[str, Any] = {
        "role": "billing",
        "allow": ("POST /v1/charges", "POST /v1/charges/*/capture"),
        "allow_reference": True,
        "daily_declines": 4,
        "max_attempts": 3,
        "max_unresolved": 3,
        "parameters": {
            "POST /v1/charges": {"allowed": ("metadata[reference]", "source", "capture")}
        },
    }
    caps = {
        "per_charge": {"usd": 6_000, "eur": 6_000},
        "daily": {"usd": 6_500, "eur": 6_500},
        "monthly": {"usd": 12_000, "eur": 9_500},
        "per_customer_daily": {"usd": 6_500, "eur": 6_500},
    }
    capped = Policy.model_validate({**common, "caps": caps, "daily_charges": 8})
    asking = Policy.model_validate({**common, "approval_above": {"usd": 2_850}})
    return (capped, None), (capped, 0), (asking, None)


def _refunding() -> tuple[tuple[Policy, int | None], ...]:
    common: dict[str, Any] = {"role": "refunds", "allow": ("POST /v1/refunds",)}
    caps = {
        "per_refund": {"usd": 2_950, "eur": 2_950},
        "daily": {"usd": 4_500, "eur": 4_500},
        "monthly": {"usd": 6_500, "eur": 6_500},
        "per_customer_daily": {"usd": 4_000, "eur": 4_000},
    }
    capped = Policy.model_validate({**common, "refund_caps": caps, "daily_refunds": 6})
    parts = Policy.model_validate({**common, "max_refunds_per_charge": 3, "max_unresolved": 3})
    asking = Policy.model_validate({**common, "refund_approval_above": {"usd": 1_000}})
    first = len(_charging())
    return (capped, None), (capped, first), (parts, None), (asking, None)
