"""`kb-mcp operations`: the ledger's operations, shown and put right.

Floor: the commands. What an operator may do stands in `operators/actions`; what is looked up at
Stripe for it is looked up before the transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kb_mcp.cli.opening import OPERATOR, OpenProxy, OpenStore, in_store, with_proxy, with_store
from kb_mcp.cli.output import Failure, json_option, print_done, print_list, print_record
from kb_mcp.instants import how_many

if TYPE_CHECKING:
    from kb_mcp.operators.actions.operations import By, Done, NotDone
    from kb_mcp.proxy.ledger.records import Attempt, Operation

Opened = TypeVar("Opened", bound=OpenStore)

STATES = ("reserved", "unknown", "awaiting_approval", "succeeded", "failed", "voided")
COLUMNS = ("id", "kind", "state", "customer_id", "billing_period", "amount", "currency",
           "charge_id", "code", "created_at")  # fmt: skip
INTENTS = "POST /v1/payment_intents"


def _cleaned(_context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    from kb_mcp.operators.actions.keys import clean_reason

    reason = clean_reason(text)
    if reason is None and option.required:
        raise click.BadParameter("say why")
    return reason


@click.group()
def operations() -> None:
    """Charges, refunds and other billing acts in the ledger.

    Example: kb-mcp operations list --state unknown
    """


@operations.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--customer", help="Only this customer's.")
@click.option("--period", help="Only this billing period's, like 2026-06.")
@click.option("--limit", type=click.IntRange(min=1), help="The newest N; without it, all.")
@json_option
@in_store
async def list_(
    opened: OpenStore,
    *,
    state: str | None,
    customer: str | None,
    period: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List operations, newest first.

    Example: kb-mcp operations list --customer cus_Abc123 --limit 20
    """
    wanted = {"state": state, "customer_id": customer, "billing_period": _label(period)}
    filters = {name: value for name, value in wanted.items() if value is not None}
    print_list(
        await opened.views.operations(limit, **filters),
        COLUMNS,
        as_json=as_json,
        empty="No operations.",
    )


@operations.command()
@click.argument("operation_id", metavar="ID")
@json_option
def show(*, operation_id: str, as_json: bool) -> None:
    """Show one operation with its attempts.

    Example: kb-mcp operations show op_0123456789abcdef01234567
    """
    record = with_store(lambda opened: _shown(opened, operation_id))
    print_record(record, as_json=as_json)


@operations.command()
@click.argument("operation_id", metavar="ID")
@click.option("--succeeded", "object_id", metavar="OBJ", help="Its charge or intent at Stripe.")
@click.option("--void", is_flag=True, help="Nothing happened at Stripe; needs --reason.")
@click.option("--reason", callback=_cleaned, help="How you know; kept in the audit.")
@json_option
def resolve(
    *, operation_id: str, object_id: str | None, void: bool, reason: str | None, as_json: bool
) -> None:
    """Record what became of an unknown operation that Stripe's list does not explain.

    OBJ is read and compared: with --succeeded, an operation that counts as failed, voided or
    waiting is settled too. --void needs two whole looks at Stripe's list, a minute apart: call it
    again when it says so.

    Example: kb-mcp operations resolve op_0123456789abcdef01234567 --succeeded ch_3Pabc
    """
    if (object_id is None) == (not void):
        raise click.UsageError("give either --succeeded OBJ or --void --reason R")
    if void and not reason:
        raise click.UsageError("--void needs --reason: how you know that nothing happened")

    async def act(opened: OpenProxy, operation: Operation) -> Done | NotDone:
        return await opened.acts.resolve(operation, object_id, _by(reason))

    _act(with_proxy, operation_id, act, as_json=as_json)


@operations.command()
@click.argument("operation_id", metavar="ID")
@click.option("--reason", required=True, callback=_cleaned,
              help="Why it may be billed again; kept in the audit.")  # fmt: skip
@click.option(
    "--amount",
    type=click.IntRange(min=1),
    metavar="N",
    help="For another amount than before, in the currency's minor unit.",
)
@click.option("--release", is_flag=True, help="Free its days for other periods instead.")
@json_option
def reopen(
    *, operation_id: str, reason: str, amount: int | None, release: bool, as_json: bool
) -> None:
    """Let a refunded bill be billed once more, or dismiss a wrong suspicion.

    The bill must be refunded in full, by refunds that succeeded. The same customer, period,
    reference, amount and currency may then be billed once; --amount allows another amount.
    --release frees the days for other periods, while the period itself stays charged.

    Where Stripe shows no full refund, the bill stays charged; one other bill that was taken for
    it may pass. Of a refund, it lets one more be made of the same charge.

    Example: kb-mcp operations reopen op_0123456789abcdef01234567 --reason "wrong card"
    """
    if release and amount is not None:
        raise click.UsageError("give either --amount or --release")

    async def act(opened: OpenProxy, operation: Operation) -> Done | NotDone:
        from kb_mcp.operators.actions.operations import Done, Reopening

        outcome = await opened.acts.reopen(operation, _by(reason), Reopening(amount, release))
        if isinstance(outcome, Done):
            click.echo(_reopened(outcome.operation, release=release), err=True)
        return outcome

    _act(with_proxy, operation_id, act, as_json=as_json)


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
@click.argument("operation_id", metavar="ID")
@json_option
def reset(*, operation_id: str, as_json: bool) -> None:
    """Set the count of declines of this bill to zero, so that it may be tried again.

    Example: kb-mcp operations reset op_0123456789abcdef01234567
    """

    async def act(opened: OpenStore, operation: Operation) -> Done:
        from kb_mcp.operators.actions.operations import Done, reset_declines

        declines = await reset_declines(opened.store.ledger, operation, _by(None))
        click.echo(f"Forgot {how_many(declines, 'decline')} of this bill.", err=True)
        return Done(operation)

    _act(with_store, operation_id, act, as_json=as_json)


@operations.command()
@click.argument("operation_id", metavar="ID")
@json_option
def cancel(*, operation_id: str, as_json: bool) -> None:
    """Cancel an abandoned PaymentIntent at Stripe, and release what it holds.

    Example: kb-mcp operations cancel op_0123456789abcdef01234567
    """

    async def act(opened: OpenProxy, operation: Operation) -> Done | NotDone:
        from kb_mcp.operators.actions.operations import Done, NotDone
        from kb_mcp.proxy.ledger.records import State

        if operation.route != INTENTS:
            hint = "Refund it at Stripe, then `kb-mcp operations reopen`."
            return NotDone(f"operation {operation.id} is no PaymentIntent: not cancellable", hint)
        if operation.state is not State.SUCCEEDED or operation.final or not operation.object_id:
            why = f"operation {operation.id} is {operation.state.value}: nothing to cancel"
            return NotDone(why, "Only intents that are not final yet can be cancelled.")
        await _cancel_intent(opened, operation)
        after = await opened.proxy.recovery.resolve_one(operation.id)
        if after is None or after.state is State.SUCCEEDED:
            return NotDone(f"{operation.object_id} was not cancelled; it may have gone through")
        return Done(after)

    _act(with_proxy, operation_id, act, as_json=as_json)


@operations.command()
@click.option("--customer", required=True, help="Whose answers to erase.")
@json_option
@in_store
async def forget(opened: OpenStore, *, customer: str, as_json: bool) -> None:
    """Erase the stored answers of a customer's final operations. Replays then read from Stripe.

    Example: kb-mcp operations forget --customer cus_Abc123
    """
    from kb_mcp.operators.actions.operations import forget_answers, forgettable

    found = await opened.store.records.operations(customer_id=customer)
    erasable = [operation for operation, _ in found if forgettable(operation)]
    erased = await forget_answers(opened.store.ledger, erasable, _by(None))
    done = {"customer_id": customer, "erased": erased, "operations": len(found)}
    answers, of = how_many(erased, "stored answer"), how_many(len(found), "operation")
    said = f"Erased {answers} of {of}."
    print_done(done, said, as_json=as_json)


def _act(
    opening: Callable[[Callable[[Opened], Awaitable[dict[str, Any]]]], dict[str, Any]],
    operation_id: str,
    act: Callable[[Opened, Operation], Awaitable[Done | NotDone]],
    *,
    as_json: bool,
) -> None:
    """Find the operation, do `act`, and print its record as it is then. Raises: Failure."""

    async def work(opened: Opened) -> dict[str, Any]:
        from kb_mcp.operators.actions.operations import NotDone

        operation, _ = await _find(opened, operation_id)
        outcome = await act(opened, operation)
        if isinstance(outcome, NotDone):
            raise Failure(outcome.why, outcome.hint)
        return await _shown(opened, operation_id)

    print_record(opening(work), as_json=as_json)


async def _shown(opened: OpenStore, operation_id: str) -> dict[str, Any]:
    await _find(opened, operation_id)
    return await opened.views.operation(operation_id)


async def _find(opened: OpenStore, operation_id: str) -> tuple[Operation, list[Attempt]]:
    found = await opened.store.records.operations(operation_id=operation_id)
    if not found:
        hint = "`kb-mcp operations list` shows every operation."
        raise Failure(f"there is no operation {operation_id}", hint)
    return found[0]


async def _cancel_intent(opened: OpenProxy, operation: Operation) -> None:
    """Post the cancellation: it can release money, never move it. Its audit row comes first."""
    from kb_mcp.operators.actions.operations import note
    from kb_mcp.proxy.stripe.messages import Answered, UpstreamRequest
    from kb_mcp.serving.machine import boottime_ms

    await note(opened.store.ledger, _by(None).row("cancel", operation))
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


def _by(reason: str | None) -> By:
    from kb_mcp.operators.actions.operations import By

    return By(OPERATOR, reason)


def _label(period: str | None) -> str | None:
    from kb_mcp.periods import PeriodError, parse_period

    try:
        return None if period is None else parse_period(period).label
    except PeriodError as error:
        raise click.BadParameter(str(error), param_hint="--period") from None
