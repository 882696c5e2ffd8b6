"""`kb-mcp approvals`: bills that wait for an operator's yes.

Floor: the commands.
"""

from __future__ import annotations

from typing import Any, Literal

import click

from kb_mcp.cli.failures import Failure
from kb_mcp.cli.opening import OPERATOR, OpenStore, with_store
from kb_mcp.cli.output import json_option, print_list, print_record

COLUMNS = ("id", "state", "endpoint", "customer_id", "billing_period", "reference", "charge_id",
           "amount", "currency", "payment_method", "key_id", "expires_at")  # fmt: skip


@click.group()
def approvals() -> None:
    """Charges and refunds that wait for an operator.

    Example: kb-mcp approvals list
    """


@approvals.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "denied", "used", "expired"]),
              help="Only those in this state.")  # fmt: skip
@json_option
def list_(*, state: str | None, as_json: bool) -> None:
    """List approvals, newest first.

    Example: kb-mcp approvals list --state pending
    """

    async def work(opened: OpenStore) -> list[dict[str, Any]]:
        from kb_mcp.operators.reports.views import approval_record

        now = opened.now()
        found = [approval_record(each, now) for each in await opened.store.records.approvals()]
        return [record for record in found if state in {None, record["state"]}]

    print_list(with_store(work), COLUMNS, as_json=as_json, empty="Nothing waits for approval.")


@approvals.command()
@click.argument("approval_id", metavar="ID")
@json_option
def approve(*, approval_id: str, as_json: bool) -> None:
    """Approve one charge or refund, once: the agent's next identical call goes through.

    Example: kb-mcp approvals approve apr_0123456789abcdef01234567
    """
    record = _decide(approval_id, "approved")
    print_record(record, as_json=as_json)
    if not as_json:
        click.echo(f"\nThe agent's next identical call goes through, until {record['expires_at']}.")


@approvals.command()
@click.argument("approval_id", metavar="ID")
@json_option
def deny(*, approval_id: str, as_json: bool) -> None:
    """Deny one charge or refund.

    Example: kb-mcp approvals deny apr_0123456789abcdef01234567
    """
    print_record(_decide(approval_id, "denied"), as_json=as_json)


def _decide(approval_id: str, verdict: Literal["approved", "denied"]) -> dict[str, Any]:
    async def work(opened: OpenStore) -> dict[str, Any]:
        from kb_mcp.operators.actions.approvals import NotDecided, decide_approval
        from kb_mcp.operators.reports.views import approval_record

        outcome = await decide_approval(opened.store.ledger, approval_id, verdict, OPERATOR)
        if isinstance(outcome, NotDecided):
            if outcome.why == "missing":
                hint = "`kb-mcp approvals list` shows them."
                raise Failure(f"there is no approval {approval_id}", hint)
            by = f" by {outcome.decided_by}" if outcome.decided_by else ""
            raise Failure(f"approval {approval_id} is {outcome.why} already{by}")
        return approval_record(outcome.approval, opened.now())

    return with_store(work)
