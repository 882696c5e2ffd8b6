"""`kb-mcp recover`, `reconcile` and `adopt`: the ledger beside what Stripe says.

Floor: the commands. None of them posts to Stripe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from kb_mcp.cli.opening import OPERATOR, OpenProxy, at_stripe
from kb_mcp.cli.output import Failure, Output, found_something, read_by
from kb_mcp.instants import how_many, rfc3339
from kb_mcp.operators.actions.adoption import MARGIN_MS, Adoption, Taken
from kb_mcp.operators.alerts import RECONCILE_DIFFERENCE
from kb_mcp.operators.reports.reconcile import Kind, Reconciliation, as_charged, item_record, needed
from kb_mcp.operators.reports.reconcile import reconcile as compare
from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.edge.records import Record, every_operation, operation_record
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.proxy.ledger.snapshot import GAP, NEW_STORE
from kb_mcp.proxy.store_walk import LOOK_BACK_AT_START_MS, BrokenWalk, LostObjects, Whole
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.reader import Missing, Unread
from kb_mcp.serving.machine import new_id

TABLES = {
    "missing_operations": (
        "Charges that the ledger lacks:",
        "kind charge_id status amount currency customer_id description created_at marked",
    ),
    "missing_charges": (
        "Operations whose charge Stripe lacks:",
        "id state amount currency customer_id billing_period charge_id created_at",
    ),
    "differing": ("Differences:", "operation_id charge_id field ledger stripe"),
}


@click.command()
@at_stripe("recover")
async def recover(opened: OpenProxy) -> None:
    """Make one recovery pass now: find out what became of unknown operations.

    The grace time still applies.
    """
    with opened.out.progress("Looking up") as advance:
        done = await opened.proxy.recovery.run(advance)
    records = [
        {"operation_id": operation_id, "state": state.value} for operation_id, state in done.items()
    ]
    opened.out.list(records, "operation_id state", "Nothing was due.")


@click.command()
@click.option("--since", required=True, help="A date, time or age: 2026-06-01, 30d.")
@at_stripe("reconcile --since 2026-06-01")
async def reconcile(opened: OpenProxy, *, since: str) -> None:
    """Compare the ledger with Stripe's lists of charges and refunds. Exit code 1 if any differ."""
    since_ms = opened.past_ms(since)
    found: dict[str, list[Record]] = {name: [] for name in TABLES}
    kinds: tuple[Kind, ...] = ("charge", "refund")
    for kind in kinds:
        outcome = await _compare(opened, kind, since_ms)
        found["missing_operations"] += [
            item_record(each) for each in outcome.unknown if each["created"] * 1000 >= since_ms
        ]
        found["missing_charges"] += await _missing(opened, outcome)
        found["differing"] += outcome.differing
    differs = any(found.values())
    if differs:
        # The serving process alerts of this row.
        counts = ", ".join(f"{len(each)} {name.replace('_', ' ')}" for name, each in found.items())
        await opened.note("reconcile", counts, RECONCILE_DIFFERENCE)
    if opened.out.as_json:
        opened.out.json(found)
    elif not differs:
        click.echo("The ledger and Stripe agree.")
    else:
        for name, (title, columns) in TABLES.items():
            if found[name]:
                click.echo(title)
                opened.out.list(found[name], columns, "")
    if differs:
        found_something()


async def _compare(opened: OpenProxy, kind: Kind, since_ms: int) -> Reconciliation:
    with opened.out.progress(f"Reading {kind}s") as advance:
        items = await opened.proxy.reads.walk(
            f"/v1/{kind}s", since_ms - MARGIN_MS, lambda done: advance(done, None), may_lack=True
        )
    if isinstance(items, Unread):
        raise Failure(f"the list of {kind}s cannot be read: {items.why}", "Nothing was changed.")
    wanted = needed(items, since_ms, kind)
    operations = [
        each
        async for operation, attempts in every_operation(opened.store.records)
        if wanted(each := as_charged(operation, attempts))
    ]
    return compare(operations, items, since_ms, kind)


async def _missing(opened: OpenProxy, outcome: Reconciliation) -> list[Record]:
    """Ask Stripe by name for each object that its list did not show."""
    missing = []
    with opened.out.progress("Asking for what was not listed") as advance:
        for done, operation in enumerate(outcome.unlisted):
            advance(done, len(outcome.unlisted))
            path = ENDPOINTS[operation.route].path_of(str(operation.object_id))
            seen = await opened.proxy.reads.get(path)
            if isinstance(seen, Unread):
                raise Failure(f"{operation.object_id} cannot be read: {seen.why}")
            if isinstance(seen, Missing):
                missing.append(operation_record(operation, ()))
    return missing


LOOK_BACK_MS = 25 * 3_600_000
COLUMNS = "charge_id adopted operation_id customer_id billing_period amount currency created_at why"
_PERIOD_FROM = re.compile(r"description|created|none|metadata:[A-Za-z0-9_ -]{1,40}")


def _period_from(text: str) -> str:
    if not _PERIOD_FROM.fullmatch(text):
        raise ValueError(f"{text!r} is not description, metadata:NAME, created or none")
    return text


@click.command()
@click.option("--since", required=True, help="A date, time or age: 2026-06-01, 90d.")
@click.option("--period-from", default="description",
              callback=read_by(_period_from), metavar="description|metadata:NAME|created|none",
              help="Where a charge says which period it is for. What says none is adopted only "
                   "with `created` (the month of its creation) or `none`.")  # fmt: skip
@click.option("--apply", is_flag=True, help="Do it; without this, only show what would be done.")
@at_stripe("adopt --since 2026-01-01 --period-from metadata:period --apply")
async def adopt(opened: OpenProxy, *, since: str, period_from: str, apply: bool) -> None:
    """Record charges that Stripe already has, so that they are not billed again."""
    since_ms = opened.past_ms(since)
    keys = await opened.store.records.keys()
    lineages: dict[str, KeyId] = {key.lineage_id: key.id for key, _ in keys}
    adoption = Adoption(
        ledger=opened.store.ledger,
        records=opened.store.records,
        reads=opened.proxy.reads,
        lineages=lineages,
        period_from=period_from,
        operator=OPERATOR,
        now=opened.now(),
        new_id=new_id,
        applies=apply,
    )
    records = await _take_all(adoption, since_ms, opened.out)
    opened.out.list(records, COLUMNS, "Nothing to adopt: the ledger has every charge.")
    if apply:
        await _close_gap(opened, since_ms)
    elif records:
        click.echo("Nothing was changed. Run it again with --apply to adopt these.", err=True)


async def _take_all(adoption: Adoption, since_ms: int, out: Output) -> list[Record]:
    with out.progress("Reading charges") as advance:
        items = await adoption.unknown(since_ms, lambda done: advance(done, None))
    if isinstance(items, Unread):
        raise Failure(f"Stripe's lists cannot be read: {items.why}", "Nothing was changed.")
    records: list[Record] = []
    with out.progress("Adopting") as advance:
        for item in items:
            advance(len(records), len(items))
            records.append(_record(await adoption.take(item), applies=adoption.applies))
    return records


def _record(taken: Taken, *, applies: bool) -> Record:
    operation, done = taken.operation, taken.left is None
    return item_record(taken.item) | {
        "adopted": done and applies,
        "customer_id": taken.item.get("customer") if operation is None else operation.customer,
        "operation_id": operation.id if operation is not None and done and applies else None,
        "billing_period": None if operation is None else operation.period,
        "reference": None if operation is None else operation.reference,
        "why": None if taken.left is None else taken.left.why,
    }


async def _close_gap(opened: OpenProxy, since_ms: int) -> None:
    """Remember the adoption; a store that had lost records sends again if nothing is left out.

    Raises: Failure.
    """
    facts, behind = opened.store_admin.facts(), opened.store.behind
    opened.store_admin.set_facts(
        {"adopted_since": rfc3339(since_ms), "adopted_at": rfc3339(opened.now())}
    )
    if not (behind or facts.get(GAP) or facts.get(NEW_STORE)):
        return
    lost_ms = _lost_since(opened)
    if lost_ms is not None and since_ms > lost_ms:
        hint = f"Run `kb-mcp adopt --since {rfc3339(lost_ms)} --apply`, and it may send again."
        raise Failure("the store has lost records, and this does not reach back far enough", hint)
    # Nothing of this store's may be left out of what Stripe lists.
    match await opened.proxy.walks.walk.run(LOOK_BACK_AT_START_MS, reach_back_to=lost_ms):
        case LostObjects(objects=objects):
            left = ", ".join(objects[:5])
            raise Failure(
                f"charges of ours are still not in the ledger: nothing is sent yet ({left})",
                "The list above says why each was left; run this again once that is put right.",
            )
        case BrokenWalk(path=path, why=why):
            raise Failure(f"{path} cannot be read: nothing is sent yet ({why})")
        case Whole():
            pass
    if behind:
        await _forget_heads(opened, behind)
        click.echo("The store may send again. Start the serving processes anew.", err=True)
    elif facts.get(GAP):
        click.echo("The store may send again.", err=True)


async def _forget_heads(opened: OpenProxy, behind: Sequence[Head]) -> None:
    """Drop the exported heads that the store does not reach, once the grace is over.

    What was being sent when the store was lost may only now be made. Raises: Failure.
    """
    last = max(each.at_ms or 0 for each in behind)
    left_ms = last + opened.store.settings.recovery_grace_ms - opened.now()
    if left_ms > 0:
        hint = f"Run this again in {how_many(left_ms // 1000 + 1, 'second')}."
        raise Failure("what was lost is younger than the recovery grace: nothing is sent yet", hint)
    lost = ", ".join(f"{each.node}:{each.seq}" for each in behind)
    await opened.note("gap_closed", lost[:200])
    opened.store.heads.forget()


def _lost_since(opened: OpenProxy) -> int | None:
    """Return from when on charges may be missing by the exported heads (ms UTC), if they tell."""
    audit, moments = opened.store.records.audit, []
    for behind in opened.store.behind:
        rows = list(audit(node=behind.node, limit=1, newest_first=True))
        if not rows and behind.began_ms is not None:
            # All that this process wrote is gone: it began after the copy was taken.
            moments.append(behind.began_ms)
            continue
        # Where nothing tells when it began, the store's first row is the safe bound.
        moments += [opened.past_ms(row["time"]) for row in rows or audit(limit=1)]
    return min(moments) - LOOK_BACK_MS if moments else None
