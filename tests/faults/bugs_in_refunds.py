"""Planted bugs in what gives money back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.read_first import ChargeReads
from kb_mcp.proxy.rules import duplicates, gates, reserve
from kb_mcp.proxy.rules.command import Prepared
from kb_mcp.proxy.rules.outcomes import conclude, resolve
from tests.faults.bugs import bug
from tests.faults.planting import part, swapped
from tests.faults.simulation import Simulation


@bug
def the_caps_of_refunds_are_not_checked(_: Simulation) -> Iterator[None]:
    right = part(reserve, "check_caps")

    def wrong(snapshot: Snapshot, command: Any, holding: Any = None) -> Any:
        return None if command.refund is not None else right(snapshot, command, holding)

    with swapped(reserve, "check_caps", wrong):
        yield


@bug
def a_refund_is_not_reserved_under_its_caps(_: Simulation) -> Iterator[None]:
    count, release = part(conclude, "count"), part(conclude, "release")

    def counted(snapshot: Snapshot, operation: Any, reserved: int = 0, **more: int) -> Any:
        held = 0 if operation.gives_back else reserved
        return count(snapshot, operation, reserved=held, **more)

    def released(snapshot: Snapshot, operation: Any) -> Any:
        return () if operation.gives_back else release(snapshot, operation)

    with (
        swapped(reserve, "count", counted),
        swapped(conclude, "count", counted),
        swapped(conclude, "release", released),
        swapped(resolve, "release", released),
    ):
        yield


@bug
def a_refund_is_named_by_the_key_of_its_caller(_: Simulation) -> Iterator[None]:
    right = part(ChargeReads, "prepare")

    async def wrong(self: Any, policy: Any, reading: Any, touch: Any) -> Any:
        asked = await right(self, policy, reading, touch)
        if not isinstance(asked, Prepared):
            return asked
        return replace(asked, name=f"{asked.name}:{reading.sent_key}")

    with swapped(ChargeReads, "prepare", wrong):
        yield


@bug
def what_was_left_when_it_was_read_is_left(_: Simulation) -> Iterator[None]:
    def wrong(_snapshot: Snapshot, view: Any, _operation: Any) -> int:
        return view.left or 0

    with swapped(duplicates, "_left", wrong):
        yield


@bug
def every_refund_of_a_charge_is_beside_the_others(_: Simulation) -> Iterator[None]:
    with swapped(duplicates, "other_refund", lambda *_: None):
        yield


@bug
def a_refund_that_came_back_is_not_released(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_given_back")

    def wrong(snapshot: Snapshot, operation: Any) -> Any:
        settled = operation.state is State.SUCCEEDED and operation.final
        return () if settled else right(snapshot, operation)

    with swapped(conclude, "_given_back", wrong):
        yield


@bug
def a_refund_that_succeeded_is_not_read_again(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_next_read")

    def wrong(snapshot: Snapshot, operation: Any, *rest: Any, final: bool) -> Any:
        return None if final else right(snapshot, operation, *rest, final=final)

    with swapped(conclude, "_next_read", wrong):
        yield


@bug
def an_unknown_refund_is_voided_before_grace(_: Simulation) -> Iterator[None]:
    right = part(resolve, "_proves_absence")

    def wrong(snapshot: Snapshot, operation: Any, read_at: int) -> bool:
        return operation.gives_back is not None or right(snapshot, operation, read_at)

    with swapped(resolve, "_proves_absence", wrong):
        yield


@bug
def a_charge_whose_bank_has_the_money_is_refunded(_: Simulation) -> Iterator[None]:
    async def wrong(self: Any, charge: str) -> None:
        return None

    with swapped(ChargeReads, "_check_disputes", wrong):
        yield


@bug
def an_approval_of_a_refund_covers_any_amount(_: Simulation) -> Iterator[None]:
    right = part(gates, "_same")

    def wrong(held: Any, wanted: Any) -> Any:
        return right(held, wanted) or (held.gives_back and held.gives_back == wanted.gives_back)

    with swapped(gates, "_same", wrong):
        yield


@bug
def a_refund_is_made_once_more_without_being_reopened(_: Simulation) -> Iterator[None]:
    right = part(duplicates, "may_bill_again")

    def wrong(snapshot: Snapshot, command: Any, refunded: Any) -> Any:
        return refunded.gives_back is not None or right(snapshot, command, refunded)

    with swapped(duplicates, "may_bill_again", wrong):
        yield
