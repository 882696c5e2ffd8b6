"""`kb-mcp operations` and `approvals`: the ledger's operations, shown, approved and put right.

Floor: the commands. What an operator may do stands in `operators/actions`; what is looked up at
Stripe for it is looked up before the transaction.
"""

from __future__ import annotations

import click

from kb_mcp.cli import group
from kb_mcp.cli.opening import OPERATOR, OpenProxy, OpenStore, at_stripe, demand, in_store
from kb_mcp.cli.output import Failure, read_by
from kb_mcp.instants import how_many
from kb_mcp.operators.actions import operations as acts
from kb_mcp.operators.actions.keys import clean_reason, given_reason
from kb_mcp.operators.actions.operations import By, Reopening
from kb_mcp.periods import parse_period
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.port import note
from kb_mcp.proxy.ledger.records import Operation, State
from kb_mcp.proxy.stripe.messages import Answered, UpstreamRequest
from kb_mcp.serving.machine import boottime_ms

STATES = ("reserved", "unknown", "awaiting_approval", "succeeded", "failed", "voided")
COLUMNS = "id kind state customer_id billing_period amount currency charge_id code created_at"
INTENTS = "POST /v1/payment_intents"
_operation = click.argument("operation_id", metavar="ID")


operations = group("operations", "list --state unknown")


@operations.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--customer", "customer_id", help="Only this customer's.")
@click.option("--period", "billing_period", callback=read_by(lambda text: parse_period(text).label),
              help="Only this billing period's, like 2026-06.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="The newest N; without it, all.")
@in_store("operations list --customer cus_Abc123 --limit 20")
async def list_(opened: OpenStore, *, limit: int | None, **filters: str | None) -> None:
    """List operations, newest first."""
    opened.out.list(await opened.views.operations(limit, **filters), COLUMNS, "No operations.")


@operations.command()
@_operation
@in_store("operations show op_0123456789abcdef01234567")
async def show(opened: OpenStore, *, operation_id: str) -> None:
    """Show one operation with its attempts."""
    opened.out.record(await opened.views.operation(operation_id))


def _one_outcome(*, object_id: str | None, void: bool, reason: str | None, **_: object) -> None:
    if (object_id is None) == (not void):
        raise click.UsageError("give either --succeeded OBJ or --void --reason R")
    if void and not reason:
        raise click.UsageError("--void needs --reason: how you know that nothing happened")


@operations.command()
@_operation
@click.option("--succeeded", "object_id", metavar="OBJ", help="Its charge or intent at Stripe.")
@click.option("--void", is_flag=True, help="Nothing happened at Stripe; needs --reason.")
@click.option("--reason", callback=read_by(clean_reason), help="How you know; kept in the audit.")
@at_stripe(
    "operations resolve op_0123456789abcdef01234567 --succeeded ch_3Pabc", check=_one_outcome
)
async def resolve(
    opened: OpenProxy, *, operation_id: str, object_id: str | None, reason: str | None, **_: bool
) -> None:
    """Record what became of an unknown operation that Stripe's list does not explain.

    OBJ is read and compared: with --succeeded, an operation that counts as failed, voided or
    waiting is settled too. --void needs two whole looks at Stripe's list, a minute apart: call it
    again when it says so.
    """
    operation = await opened.views.raw_operation(operation_id)
    demand(await opened.acts.resolve(operation, object_id, By(OPERATOR, reason)))
    opened.out.record(await opened.views.operation(operation_id))


def _one_way(*, amount: int | None, release: bool, **_: object) -> None:
    if release and amount is not None:
        raise click.UsageError("give either --amount or --release")


@operations.command()
@_operation
@click.option("--reason", required=True, callback=read_by(given_reason),
              help="Why it may be billed again; kept in the audit.")  # fmt: skip
@click.option("--amount", type=click.IntRange(min=1), metavar="N",
              help="For another amount than before, in the currency's minor unit.")  # fmt: skip
@click.option("--release", is_flag=True, help="Free its days for other periods instead.")
@at_stripe('operations reopen op_0123456789abcdef01234567 --reason "wrong card"', check=_one_way)
async def reopen(
    opened: OpenProxy, *, operation_id: str, reason: str, amount: int | None, release: bool
) -> None:
    """Let a refunded bill be billed once more, or dismiss a wrong suspicion.

    The bill must be refunded in full, by refunds that succeeded. The same customer, period,
    reference, amount and currency may then be billed once; --amount allows another amount.
    --release frees the days for other periods, while the period itself stays charged.

    Where Stripe shows no full refund, the bill stays charged; one other bill that was taken for
    it may pass. Of a refund, it lets one more be made of the same charge.
    """
    operation = await opened.views.raw_operation(operation_id)
    by, wanted = By(OPERATOR, reason), Reopening(amount, release)
    after = demand(await opened.acts.reopen(operation, by, wanted))
    click.echo(_reopened(after, release=release), err=True)
    opened.out.record(await opened.views.operation(operation_id))


def _reopened(operation: Operation, *, release: bool) -> str:
    """Say what may happen now that `operation` is reopened."""
    if operation.gives_back is not None:
        next_call = f"The next refund of {operation.gives_back} is made"
        return f"{next_call}: of the amount that it names, or of all that is left."
    if release:
        return "Bills of other periods may have its days now; its own period stays charged."
    if operation.waived:
        held = f"{operation.object_id} is not refunded in full, so this bill stays charged."
        return f"{held} One other bill that looks like it may pass."
    return "The next call for this bill charges once more."


@operations.command()
@_operation
@in_store("operations reset op_0123456789abcdef01234567")
async def reset(opened: OpenStore, *, operation_id: str) -> None:
    """Set the count of declines of this bill to zero, so that it may be tried again."""
    operation = await opened.views.raw_operation(operation_id)
    declines = await acts.reset_declines(opened.store.ledger, operation, By(OPERATOR))
    click.echo(f"Forgot {how_many(declines, 'decline')} of this bill.", err=True)
    opened.out.record(await opened.views.operation(operation_id))


@operations.command()
@_operation
@at_stripe("operations cancel op_0123456789abcdef01234567")
async def cancel(opened: OpenProxy, *, operation_id: str) -> None:
    """Cancel an abandoned PaymentIntent at Stripe, and release what it holds."""
    operation = await opened.views.raw_operation(operation_id)
    if operation.route != INTENTS:
        hint = "Refund it at Stripe, then `kb-mcp operations reopen`."
        raise Failure(f"operation {operation.id} is no PaymentIntent: not cancellable", hint)
    if operation.state is not State.SUCCEEDED or operation.final or not operation.object_id:
        why = f"operation {operation.id} is {operation.state.value}: nothing to cancel"
        raise Failure(why, "Only intents that are not final yet can be cancelled.")
    # It can release money, never move it. Its audit row comes first.
    await note(opened.store.ledger, By(OPERATOR).row("cancel", operation))
    request = UpstreamRequest(
        method="POST",
        path=f"/v1/payment_intents/{operation.object_id}/cancel",
        body=b"",
        stripe_version=None,
        idempotency_key=f"{operation.upstream_name}-cancel",
    )
    answer = await opened.proxy.upstream.send(request, deadline_ms=boottime_ms() + 10_000)
    if not isinstance(answer, Answered) or answer.status >= 500:
        raise Failure("Stripe did not answer the cancellation", "Run the command again.")
    after = await opened.proxy.recovery.resolve_one(operation.id)
    if after is None or after.state is State.SUCCEEDED:
        raise Failure(f"{operation.object_id} was not cancelled; it may have gone through")
    opened.out.record(await opened.views.operation(operation_id))


@operations.command()
@click.option("--customer", required=True, help="Whose answers to erase.")
@in_store("operations forget --customer cus_Abc123")
async def forget(opened: OpenStore, *, customer: str) -> None:
    """Erase the stored answers of a customer's final operations. Replays then read from Stripe."""
    found = await opened.store.records.operations(customer_id=customer)
    erasable = [operation for operation, _ in found if acts.forgettable(operation)]
    erased = await acts.forget_answers(opened.store.ledger, erasable, By(OPERATOR))
    done = {"customer_id": customer, "erased": erased, "operations": len(found)}
    answers, of = how_many(erased, "stored answer"), how_many(len(found), "operation")
    opened.out.done(done, f"Erased {answers} of {of}.")


APPROVAL_COLUMNS = (
    "id state endpoint customer_id billing_period reference charge_id invoice_id amount currency "
    "payment_method key_id expires_at blocked_by"
)
_approval = click.argument("approval_id", metavar="ID")
approvals = group("approvals", "list")


@approvals.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "denied", "used", "expired"]),
              help="Only those in this state.")  # fmt: skip
@in_store("approvals list --state pending")
async def approval_list(opened: OpenStore, *, state: str | None) -> None:
    """List approvals, newest first."""
    found = await opened.views.approvals(state=state)
    opened.out.list(found, APPROVAL_COLUMNS, "Nothing waits for approval.")


@approvals.command()
@_approval
@in_store("approvals approve apr_0123456789abcdef01234567")
async def approve(opened: OpenStore, *, approval_id: str) -> None:
    """Approve one charge or refund, once: the agent's next identical call goes through."""
    record = await _decide(opened, approval_id, "approved")
    if not opened.out.as_json:
        then = f"goes through if its caps allow it, until {record['expires_at']}"
        if record["blocked_by"]:
            then = f"moves no money as things are: {record['blocked_by']}"
        click.echo(f"\nThe agent's next identical call {then}.")


@approvals.command()
@_approval
@in_store("approvals deny apr_0123456789abcdef01234567")
async def deny(opened: OpenStore, *, approval_id: str) -> None:
    """Deny one charge or refund."""
    await _decide(opened, approval_id, "denied")


async def _decide(opened: OpenStore, approval_id: str, verdict: acts.Verdict) -> Record:
    """Decide, print the approval as it is then, and return it."""
    await acts.decide_approval(opened.store.ledger, approval_id, verdict, OPERATOR)
    (record,) = await opened.views.approvals(approval_id=approval_id)
    opened.out.record(record)
    return record
