"""Planted bugs beside the hot path: gates, operators' words, names that SDKs make up, clocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from kb_mcp.operators.actions import resolve
from kb_mcp.operators.actions.operations import By
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.records import Changes
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules import decide, duplicates, gates, reserve
from kb_mcp.proxy.rules.outcomes import conclude
from kb_mcp.proxy.rules.outcomes.resolve import Unreadable
from kb_mcp.proxy.stores.binding import LiveSettings
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger
from kb_mcp.proxy.stripe import evidence
from tests.faults.bugs import bug
from tests.faults.planting import part, swapped
from tests.faults.simulation import Simulation


@bug
def an_approval_covers_whatever_the_bill_becomes(_: Simulation) -> Iterator[None]:
    right = part(gates, "_same")

    def wrong(held: Any, wanted: Any) -> Any:
        return held.endpoint == wanted.endpoint or right(held, wanted)

    with swapped(gates, "_same", wrong):
        yield


@bug
def a_currency_without_a_threshold_needs_no_approval(_: Simulation) -> Iterator[None]:
    def wrong(command: Any) -> Any:
        limits, money = command.policy.approval_above, command.money
        return money.amount > limits.get(money.currency, money.amount)

    with swapped(gates, "_above", wrong):
        yield


@bug
def a_frozen_key_sends(_: Simulation) -> Iterator[None]:
    with swapped(gates, "check_key", _nothing), swapped(reserve, "check_key", _nothing):
        yield


@bug
def a_resend_does_not_ask_what_its_sender_may(_: Simulation) -> Iterator[None]:
    def wrong(snapshot: Snapshot, command: Any, operation: Any, keep: Any) -> Any:
        return Changes()

    with swapped(decide, "check_send", wrong):
        yield


@bug
def an_operator_voids_where_the_list_could_not_be_read(_: Simulation) -> Iterator[None]:
    right = part(resolve, "_not_absent")

    def wrong(snapshot: Snapshot, leased: Any, finding: Any, daily_declines: int) -> Any:
        if isinstance(finding, Unreadable):
            return part(resolve, "_void")(snapshot, snapshot.operations[leased.id], By("ann"))
        return right(snapshot, leased, finding, daily_declines)

    with swapped(resolve, "_not_absent", wrong):
        yield


@bug
def an_operator_settles_a_bill_with_any_charge(_: Simulation) -> Iterator[None]:
    with swapped(resolve, "why_not_its", _nothing):
        yield


@bug
def the_days_of_two_periods_are_not_compared(_: Simulation) -> Iterator[None]:
    def wrong(command: Any, period: Any, peer: Any) -> bool:
        return bool(peer.period == period.label)

    with swapped(duplicates, "_same_days", wrong):
        yield


@bug
def a_ceiling_holds_from_the_next_start(_: Simulation) -> Iterator[None]:
    with swapped(LiveSettings, "read", lambda self, _facts: self.now):
        yield


@bug
def one_date_is_the_time(_: Simulation) -> Iterator[None]:
    with swapped(StoreClock, "_why_not", lambda *_: ""):
        yield


@bug
def the_high_water_mark_is_not_kept(_: Simulation) -> Iterator[None]:
    right = part(SqliteLedger, "_snapshot")

    def wrong(self: Any, facts: Any) -> Any:
        snapshot, now = right(self, facts), self._clock.host_ms()
        return dataclasses.replace(
            snapshot, now=now, latest=now, skewed=False, turning=False, unheard=False
        )

    with swapped(SqliteLedger, "_snapshot", wrong):
        yield


@bug
def a_host_that_was_set_is_believed(_: Simulation) -> Iterator[None]:
    with (
        swapped(StoreClock, "_stripe_ms", lambda *_: None),
        swapped(StoreClock, "_why_not_alone", lambda *_: ""),
    ):
        yield


@bug
def stripe_may_be_ahead_of_the_time_that_passed(_: Simulation) -> Iterator[None]:
    right = part(StoreClock, "_why_not")

    def wrong(self: Any, stripe: int, steady: int) -> str:
        why: str = right(self, stripe, steady)
        return "" if "does not go with" in why else why

    with swapped(StoreClock, "_why_not", wrong):
        yield


@bug
def a_reopened_bill_may_be_billed_for_any_amount(_: Simulation) -> Iterator[None]:
    def wrong(peer: Any, command: Any) -> bool:
        reading = command.reading
        same = peer.gives_back == (command.refund and command.refund.charge)
        period = None if reading.period is None else reading.period.label
        return bool(peer.reopened and same and peer.period == period)

    with swapped(duplicates, "opened_for", wrong):
        yield


@bug
def an_approval_covers_another_payment_method(_: Simulation) -> Iterator[None]:
    right = part(gates, "_same")

    def wrong(held: Any, wanted: Any) -> Any:
        return right(replace(held, payment_method=wanted.payment_method), wanted)

    with swapped(gates, "_same", wrong):
        yield


@bug
def a_key_that_an_sdk_made_up_is_forgotten(_: Simulation) -> Iterator[None]:
    with swapped(decide, "_remembered", lambda *_: ()):
        yield


@bug
def a_capture_takes_all_that_was_authorised(_: Simulation) -> Iterator[None]:
    def wrong(operation: Any, proof: Any, *, known: bool, differs: bool) -> int:
        return int(operation.held or operation.amount)

    with swapped(conclude, "_taken", wrong):
        yield


@bug
def what_is_authorised_is_paid(_: Simulation) -> Iterator[None]:
    right = part(evidence, "_verdict")

    def wrong(lifecycle: Any, body: Any) -> Any:
        return right(lifecycle, body | {"captured": True})

    with swapped(evidence, "_verdict", wrong):
        yield


def _nothing(*_: Any) -> None:
    """Let everything pass."""
