"""`kb-mcp recover`, `reconcile` and `adopt`: the ledger beside what Stripe says.

Floor: the commands. None of them posts to Stripe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kb_mcp.cli.failures import Failure, found_something
from kb_mcp.cli.opening import OPERATOR, OpenProxy, with_proxy
from kb_mcp.cli.options import past_ms
from kb_mcp.cli.output import json_option, print_json, print_list
from kb_mcp.cli.progress import Advance, progress

if TYPE_CHECKING:
    from kb_mcp.operators.reports.reconcile import Reconciliation
    from kb_mcp.proxy.ledger.records import KeyId

# A charge may be listed under an earlier second than its reservation: clocks differ.
MARGIN_MS = 3_600_000
LOOK_BACK_MS = 25 * 3_600_000
CHARGE_COLUMNS = ("kind", "charge_id", "status", "amount", "currency", "customer_id", "description",
                  "created_at", "marked")  # fmt: skip
OPERATION_COLUMNS = ("id", "state", "amount", "currency", "customer_id", "billing_period",
                     "charge_id", "created_at")  # fmt: skip
DIFFERENCE_COLUMNS = ("operation_id", "charge_id", "field", "ledger", "stripe")
ADOPT_COLUMNS = ("charge_id", "adopted", "operation_id", "customer_id", "billing_period", "amount",
                 "currency", "created_at", "why")  # fmt: skip
_PERIOD_FROM = re.compile(r"description|none|metadata:[A-Za-z0-9_ -]{1,40}")


@click.command()
@json_option
def recover(*, as_json: bool) -> None:
    """Make one recovery pass now: find out what became of unknown operations. Grace still holds.

    Example: kb-mcp recover
    """

    async def work(opened: OpenProxy) -> list[dict[str, Any]]:
        with progress("Looking up", shown=not as_json) as advance:
            done = await opened.proxy.recovery.run(advance)
        return [
            {"operation_id": operation_id, "state": state.value}
            for operation_id, state in done.states.items()
        ]

    records = with_proxy(work)
    print_list(records, ("operation_id", "state"), as_json=as_json, empty="Nothing was due.")


@click.command()
@click.option("--since", required=True, help="A date, time or age: 2026-06-01, 30d.")
@json_option
def reconcile(*, since: str, as_json: bool) -> None:
    """Compare the ledger with Stripe's lists of charges and refunds. Exit code 1 if any differ.

    Example: kb-mcp reconcile --since 2026-06-01
    """

    async def work(opened: OpenProxy) -> dict[str, list[dict[str, Any]]]:
        from kb_mcp.operators.reports.reconcile import charge_record
        from kb_mcp.operators.reports.refund_reconcile import refund_record

        since_ms = past_ms(since, opened.now())
        outcome = await _compare(opened, since_ms, shown=not as_json)
        refunds = await _compare_refunds(opened, since_ms, shown=not as_json)
        with progress("Asking for what was not listed", shown=not as_json) as advance:
            missing = await _missing(opened, outcome, advance)
            missing += await _missing(opened, refunds, advance)
        found = {
            "missing_operations": [
                write(each)
                for write, unknown in (
                    (charge_record, outcome.unknown_charges),
                    (refund_record, refunds.unknown_charges),
                )
                for each in unknown
                if int(each["created"]) * 1000 >= since_ms
            ],
            "missing_charges": missing,
            "differing": [*outcome.differing, *refunds.differing],
        }
        if any(found.values()):
            await _note_difference(opened, found)
        return found

    result = with_proxy(work)
    if as_json:
        print_json(result)
    else:
        _print_comparison(result)
    if any(result.values()):
        found_something()


@click.command()
@click.option("--since", required=True, help="A date, time or age: 2026-06-01, 90d.")
@click.option("--period-from", default="description", show_default=True,
              metavar="description|metadata:NAME|none",
              help="Where a charge says which period it is for.")  # fmt: skip
@click.option("--apply", is_flag=True, help="Do it; without this, only show what would be done.")
@json_option
def adopt(*, since: str, period_from: str, apply: bool, as_json: bool) -> None:
    """Make operations of charges Stripe already has, so that they are not billed again.

    Example: kb-mcp adopt --since 2026-01-01 --period-from metadata:period --apply
    """
    if not _PERIOD_FROM.fullmatch(period_from):
        hint = "description, metadata:NAME or none"
        raise click.BadParameter(f"{period_from!r} is not {hint}", param_hint="--period-from")

    async def work(opened: OpenProxy) -> list[dict[str, Any]]:
        since_ms = past_ms(since, opened.now())
        shown = not as_json
        records = await _adopt(opened, since_ms, period_from, apply=apply, shown=shown)
        if apply:
            await _close_gap(opened, since_ms, shown=shown)
        return records

    records = with_proxy(work)
    empty = "Nothing to adopt: the ledger has every charge."
    print_list(records, ADOPT_COLUMNS, as_json=as_json, empty=empty)
    if records and not apply:
        click.echo("Nothing was changed. Run it again with --apply to adopt these.", err=True)


async def _compare(opened: OpenProxy, since_ms: int, *, shown: bool) -> Reconciliation:
    from kb_mcp.operators.reports.reconcile import Wanted
    from kb_mcp.operators.reports.reconcile import reconcile as compare
    from kb_mcp.proxy.edge.records import every_operation
    from kb_mcp.proxy.stripe.reader import Unread

    with progress("Reading charges", shown=shown) as advance:
        charges = await opened.reads.walk(
            "/v1/charges", since_ms - MARGIN_MS, lambda done: advance(done, None)
        )
    if isinstance(charges, Unread):
        raise Failure(f"the list of charges cannot be read: {charges.why}", "Nothing was changed.")
    wanted = Wanted.by(charges, since_ms)
    ledger = every_operation(opened.store.records)
    operations = [each async for each, _ in ledger if wanted.holds(each)]
    return compare(operations, charges, since_ms)


async def _compare_refunds(opened: OpenProxy, since_ms: int, *, shown: bool) -> Reconciliation:
    from kb_mcp.operators.reports.refund_reconcile import reconcile_refunds
    from kb_mcp.proxy.edge.records import every_operation
    from kb_mcp.proxy.stripe.reader import Unread

    with progress("Reading refunds", shown=shown) as advance:
        refunds = await opened.reads.walk(
            "/v1/refunds", since_ms - MARGIN_MS, lambda done: advance(done, None)
        )
    if isinstance(refunds, Unread):
        raise Failure(f"the list of refunds cannot be read: {refunds.why}", "Nothing was changed.")
    ledger = every_operation(opened.store.records)
    operations = [each async for each, _ in ledger if each.kind == "refund"]
    return reconcile_refunds(operations, refunds, since_ms)


async def _missing(
    opened: OpenProxy, outcome: Reconciliation, advance: Advance
) -> list[dict[str, Any]]:
    """Ask Stripe by name for each object that its list did not show."""
    from kb_mcp.proxy.edge.records import operation_record
    from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
    from kb_mcp.proxy.stripe.reader import Found, Unread

    missing = []
    for done, operation in enumerate(outcome.unlisted):
        advance(done, len(outcome.unlisted))
        path = f"{ENDPOINTS[operation.route].template}/{operation.object_id}"
        seen = await opened.reads.get(path)
        if isinstance(seen, Unread):
            raise Failure(f"{operation.object_id} cannot be read: {seen.why}")
        if not isinstance(seen, Found):
            missing.append(operation_record(operation, ()))
    return missing


async def _adopt(
    opened: OpenProxy, since_ms: int, period_from: str, *, apply: bool, shown: bool
) -> list[dict[str, Any]]:
    outcome = await _compare(opened, since_ms, shown=shown)
    keys = await opened.store.records.keys()
    lineages: dict[str, KeyId] = {key.lineage_id: key.id for key, _ in keys}
    records: list[dict[str, Any]] = []
    with progress("Adopting", shown=shown) as advance:
        # Stripe lists the newest first, and the newest of a bill is to speak for it.
        for charge in reversed(outcome.unknown_charges):
            advance(len(records), len(outcome.unknown_charges))
            records.append(await _adopt_one(opened, charge, lineages, period_from, apply=apply))
    return records + await _adopt_refunds(opened, since_ms, lineages, apply=apply, shown=shown)


async def _adopt_refunds(
    opened: OpenProxy, since_ms: int, lineages: Mapping[str, KeyId], *, apply: bool, shown: bool
) -> list[dict[str, Any]]:
    """Adopt the refunds that others made, after the charges that they give back."""
    from kb_mcp.operators.actions.adopt import Adopted, Left
    from kb_mcp.operators.actions.refunds import adopt_refund, refund_operation
    from kb_mcp.operators.reports.refund_reconcile import refund_record
    from kb_mcp.proxy.stripe.reader import Found

    outcome, records = await _compare_refunds(opened, since_ms, shown=shown), []
    for refund in reversed(outcome.unknown_charges):
        seen = await opened.reads.get(f"/v1/charges/{refund.get('charge')}")
        customer = seen.body.get("customer") if isinstance(seen, Found) else None
        now = opened.now()
        operation, attempt = refund_operation(refund, customer, lineages, now, _fresh_id())
        young = now - operation.reserved_at < opened.store.settings.recovery_grace_ms
        result: Adopted | Left = Adopted(operation)
        if not isinstance(seen, Found):
            result = Left("its charge cannot be read")
        elif young and operation.lineage_id in lineages:
            result = Left("made within the recovery grace: run this again later")
        elif apply:
            result = await adopt_refund(opened.store.ledger, operation, attempt, OPERATOR)
        taken = isinstance(result, Adopted)
        records.append(
            refund_record(refund)
            | {
                "adopted": taken and apply,
                "operation_id": operation.id if taken and apply else None,
                "customer_id": customer,
                "why": None if isinstance(result, Adopted) else result.why,
            }
        )
    return records


async def _adopt_one(
    opened: OpenProxy,
    charge: Mapping[str, Any],
    lineages: Mapping[str, KeyId],
    period_from: str,
    *,
    apply: bool,
) -> dict[str, Any]:
    from kb_mcp.operators.actions.adopt import Adopted, Left, operation_of, period_of
    from kb_mcp.operators.actions.adopt import adopt as adopt_one

    now = opened.now()
    period = period_of(charge, period_from)
    operation, attempt = operation_of(charge, period, lineages, now, _fresh_id())
    young = now - operation.reserved_at < opened.store.settings.recovery_grace_ms
    result: Adopted | Left = Adopted(operation)
    if young and operation.lineage_id in lineages:
        # Ours, and so new that the process that sent it may be about to conclude it.
        result = Left("made within the recovery grace: run this again later")
    elif apply:
        result = await adopt_one(opened.store.ledger, operation, attempt, OPERATOR)
    return _adopted_record(charge, operation, result, apply=apply)


def _fresh_id() -> Any:
    from kb_mcp.serving.machine import new_id

    return new_id("op")


def _adopted_record(
    charge: Mapping[str, Any], operation: Any, result: Any, *, apply: bool
) -> dict[str, Any]:
    from kb_mcp.operators.actions.adopt import Adopted
    from kb_mcp.operators.reports.reconcile import charge_record

    taken = isinstance(result, Adopted)
    return charge_record(charge) | {
        "adopted": taken and apply,
        "operation_id": operation.id if taken and apply else None,
        "billing_period": operation.period,
        "reference": operation.reference,
        "why": None if taken else result.why,
    }


async def _close_gap(opened: OpenProxy, since_ms: int, *, shown: bool) -> None:
    """Remember the adoption; a store that had lost records may send again if nothing is left out.

    Every marked charge since the last record before the gap, less 25 h, must be in the ledger.
    """
    from kb_mcp.operators.actions.operations import note
    from kb_mcp.proxy.ledger.records import AuditDraft
    from kb_mcp.proxy.ledger.windows import rfc3339

    opened.store_admin.set_facts(
        {"adopted_since": rfc3339(since_ms), "adopted_at": rfc3339(opened.now())}
    )
    if not opened.store.behind:
        return
    needed = _needed_since(opened)
    if since_ms > needed:
        hint = f"Run `kb-mcp adopt --since {rfc3339(needed)} --apply`, and it may send again."
        raise Failure("the store has lost records, and this does not reach back far enough", hint)
    outcome = await _compare(opened, since_ms, shown=shown)
    if any(
        "keybrake_operation" in (each.get("metadata") or {}) for each in outcome.unknown_charges
    ):
        raise Failure("charges of ours are still not in the ledger: nothing is sent yet")
    _demand_settled(opened)
    lost = ", ".join(f"{behind.head.node}:{behind.head.seq}" for behind in opened.store.behind)
    row = AuditDraft(kind="admin", decision="gap_closed", agent_id=OPERATOR, note=lost[:200])
    await note(opened.store.ledger, row)
    opened.store.heads.forget()
    click.echo("The store may send again. Start the serving processes anew.", err=True)


def _demand_settled(opened: OpenProxy) -> None:
    """Wait out the grace: what was being sent when the store was lost may only now be made.

    Raises: Failure.
    """
    last = max((behind.at_ms or 0 for behind in opened.store.behind), default=0)
    left_ms = last + opened.store.settings.recovery_grace_ms - opened.now()
    if left_ms > 0:
        hint = f"Run this again in {left_ms // 1000 + 1} seconds."
        raise Failure("what was lost is younger than the recovery grace: nothing is sent yet", hint)


def _needed_since(opened: OpenProxy) -> int:
    """Return from when on charges may be missing (ms UTC)."""
    audit, moments = opened.store.records.audit, []
    for behind in opened.store.behind:
        rows = list(audit(node=behind.head.node, limit=1, newest_first=True))
        if not rows and behind.began_ms is not None:
            # All that this process wrote is gone: it began after the copy was taken.
            moments.append(behind.began_ms - LOOK_BACK_MS)
            continue
        # Where nothing tells when it began, the store's first row is the safe bound.
        rows = rows or list(audit(limit=1))
        moments += [past_ms(row["time"], 0) - LOOK_BACK_MS for row in rows]
    return min(moments, default=0)


async def _note_difference(opened: OpenProxy, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Leave a row that the serving process alerts of."""
    from kb_mcp.operators.actions.operations import note
    from kb_mcp.operators.alerts.rules import RECONCILE_DIFFERENCE
    from kb_mcp.proxy.ledger.records import AuditDraft

    counts = ", ".join(f"{len(each)} {name.replace('_', ' ')}" for name, each in found.items())
    row = AuditDraft(
        kind="admin",
        decision="reconcile",
        code=RECONCILE_DIFFERENCE,
        agent_id=OPERATOR,
        note=counts,
    )
    await note(opened.store.ledger, row)


def _print_comparison(result: dict[str, list[dict[str, Any]]]) -> None:
    if not any(result.values()):
        click.echo("The ledger and Stripe agree.")
        return
    tables = {
        "missing_operations": ("Charges that the ledger lacks:", CHARGE_COLUMNS),
        "missing_charges": ("Operations whose charge Stripe lacks:", OPERATION_COLUMNS),
        "differing": ("Differences:", DIFFERENCE_COLUMNS),
    }
    for name, (title, columns) in tables.items():
        if result[name]:
            click.echo(title)
            print_list(result[name], columns, as_json=False, empty="")
