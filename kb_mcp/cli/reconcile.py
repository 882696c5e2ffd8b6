"""`kb-mcp recover` and `reconcile`: the ledger beside what Stripe says.

Floor: the commands. None of them posts to Stripe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kb_mcp.cli.failures import Failure, found_something
from kb_mcp.cli.opening import OPERATOR, OpenProxy, with_proxy
from kb_mcp.cli.output import json_option, print_json, print_list
from kb_mcp.cli.progress import Advance, progress

if TYPE_CHECKING:
    from kb_mcp.operators.reports.reconcile import Reconciliation

# A charge may be listed under an earlier second than its reservation: clocks differ.
MARGIN_MS = 3_600_000
CHARGE_COLUMNS = ("kind", "charge_id", "status", "amount", "currency", "customer_id", "description",
                  "created_at", "marked")  # fmt: skip
OPERATION_COLUMNS = ("id", "state", "amount", "currency", "customer_id", "billing_period",
                     "charge_id", "created_at")  # fmt: skip
DIFFERENCE_COLUMNS = ("operation_id", "charge_id", "field", "ledger", "stripe")


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

        since_ms = opened.past_ms(since)
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


async def _compare(opened: OpenProxy, since_ms: int, *, shown: bool) -> Reconciliation:
    from kb_mcp.operators.reports.reconcile import Wanted
    from kb_mcp.operators.reports.reconcile import reconcile as compare
    from kb_mcp.proxy.edge.records import every_operation
    from kb_mcp.proxy.stripe.reader import Unread

    with progress("Reading charges", shown=shown) as advance:
        charges = await opened.reads.walk(
            "/v1/charges", since_ms - MARGIN_MS, lambda done: advance(done, None), may_lack=True
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
            "/v1/refunds", since_ms - MARGIN_MS, lambda done: advance(done, None), may_lack=True
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
