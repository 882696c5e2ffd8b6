"""Keys that an SDK made up, and keys of callers: the same one again is the same request."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.access.policy import Policy
from tests.in_process_proxy import InProcessProxy, error_of
from tests.postgres import database, either_store, server

__all__ = ["database", "either_store", "server"]

pytestmark = pytest.mark.usefixtures("either_store")

FIRST, SECOND, THIRD = (str(uuid.UUID(int=number, version=4)) for number in (1, 2, 3))
BOTH = Policy(role="both", allow=("POST /v1/charges", "POST /v1/payment_intents"))
CALLER = BOTH.model_copy(update={"idempotency": "caller"})
MINUTE, HOUR = 60, 3600
INTENTS = "/v1/payment_intents"


@pytest.mark.parametrize("key_made", [FIRST, f"stripe-node-retry-{FIRST}"])
@pytest.mark.parametrize("hours", [1, 21, 24 * 40])
def test_the_same_key_is_the_same_request_for_good(
    tmp_path: Path, key_made: str, hours: int
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header=key_made)
        in_process.turn_clock(hours * HOUR)
        again = in_process.charge(key, key_header=key_made)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert again.headers["idempotent-replayed"] == "true"
        assert len(in_process.charges()) == 1


def test_a_key_is_remembered_through_a_restart_and_after_its_answer_was_forgotten(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header=FIRST)
        in_process.forget("cus_A1")
        in_process.turn_clock(21 * HOUR)
        in_process.restart()
        again = in_process.charge(key, key_header=FIRST)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert len(in_process.charges()) == 1


@pytest.mark.parametrize(
    "other",
    [{"amount": 3000}, {"currency": "eur"}, {"description": "another"}, {"metadata[order]": "7"}],
)
@pytest.mark.parametrize("hours", [0, 21])
def test_the_same_key_with_another_body_is_refused(
    tmp_path: Path, other: dict[str, Any], hours: int
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header=FIRST)
        in_process.turn_clock(hours * HOUR)
        refused = in_process.charge(key, key_header=FIRST, **other)
        assert (refused.status_code, error_of(refused)) == (400, "idempotency_key_reused")
        assert refused.json()["error"]["keybrake"]["charge_id"] == first.json()["id"]
        assert len(in_process.charges()) == 1


def test_two_keys_with_one_body_are_a_retry_then_suspected_then_the_next_occurrence(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header=FIRST).json()["id"]
        in_process.turn_clock(14 * MINUTE)
        retry = in_process.charge(key, key_header=SECOND)
        assert (retry.json()["id"], retry.headers["idempotent-replayed"]) == (first, "true")
        in_process.turn_clock(2 * MINUTE)
        suspected = in_process.charge(key, key_header=THIRD)
        assert (suspected.status_code, error_of(suspected)) == (400, "duplicate_suspected")
        assert suspected.json()["error"]["keybrake"]["charge_id"] == first
        # What was answered under the second key stays its answer; the third named nothing yet.
        assert in_process.charge(key, key_header=SECOND).json()["id"] == first
        in_process.turn_clock(20 * HOUR)
        assert in_process.charge(key, key_header=SECOND).json()["id"] == first
        second = in_process.charge(key, key_header=THIRD).json()["id"]
        assert second != first
        for made_up, charge in ((FIRST, first), (SECOND, first), (THIRD, second)):
            again = in_process.charge(key, key_header=made_up)
            assert (again.json()["id"], again.headers["idempotent-replayed"]) == (charge, "true")
        assert len(in_process.charges()) == 2


def test_a_key_is_its_customers_and_its_endpoints(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(BOTH)
        assert in_process.charge(key, key_header=FIRST).status_code == 200
        other = in_process.charge(key, key_header=FIRST, customer="cus_B2", amount=100)
        assert other.status_code == 200
        intent = in_process.charge(key, INTENTS, key_header=FIRST, amount=700)
        assert intent.status_code == 200
        assert in_process.charge(key, key_header=FIRST).headers["idempotent-replayed"] == "true"


def test_a_content_name_beats_a_key_that_was_made_up(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        assert in_process.charge(key, key_header=FIRST, period="2026-10").status_code == 200
        # One key over two periods, as of a client that makes one for a whole run.
        assert in_process.charge(key, key_header=FIRST, period="2026-11").status_code == 200
        assert in_process.charge(key, key_header=FIRST, amount=50).status_code == 200
        assert in_process.charge(key, key_header=FIRST, period="2026-09").status_code == 200
        assert len(in_process.charges()) == 4


def test_a_key_in_the_body_is_remembered_beside_the_one_that_the_sdk_sends(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header=FIRST, idempotency_key=SECOND).json()["id"]
        in_process.turn_clock(21 * HOUR)
        again = in_process.charge(key, key_header=THIRD, idempotency_key=SECOND)
        assert again.json()["id"] == first
        assert len(in_process.charges()) == 1


def test_a_rejected_request_leaves_its_key_free_for_another_body(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        wrong = in_process.charge(key, key_header=FIRST, amount=10)  # below Stripe's minimum
        assert wrong.status_code == 400
        assert in_process.charge(key, key_header=FIRST, amount=1000).status_code == 200
        refused = in_process.charge(key, key_header=FIRST, amount=10)
        assert error_of(refused) == "idempotency_key_reused"


def test_a_lost_answer_is_found_again_under_its_key(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_after")
        assert in_process.charge(key, key_header=FIRST).status_code == 504
        refused = in_process.charge(key, key_header=FIRST, amount=3000)
        assert error_of(refused) == "idempotency_key_reused"
        in_process.turn_clock(25 * HOUR)
        in_process.recover()
        assert in_process.charge(key, key_header=FIRST).headers["idempotent-replayed"] == "true"
        assert len(in_process.charges()) == 1


def test_one_key_with_two_bodies_at_once_charges_one(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(12) as pool:
        key = in_process.issue()

        def ask(number: int) -> int:
            return in_process.charge(key, key_header=FIRST, amount=100 + number).status_code

        assert sorted(pool.map(ask, range(12))) == [200] + [400] * 11
        assert len(in_process.charges()) == 1


def test_a_declined_key_does_not_come_back_beside_the_next_occurrence(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("402")
        assert in_process.charge(key, key_header=FIRST).status_code == 402
        assert error_of(in_process.charge(key, key_header=FIRST, amount=77)) == (
            "idempotency_key_reused"
        )
        in_process.turn_clock(21 * HOUR)
        paid = in_process.charge(key, key_header=SECOND)
        assert paid.status_code == 200
        in_process.turn_clock(HOUR)
        assert error_of(in_process.charge(key, key_header=FIRST)) == "duplicate_suspected"
        assert len(in_process.charges()) == 1


def test_one_key_through_two_vault_keys_is_one_request(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        one, other = in_process.issue(), in_process.issue()
        first = in_process.charge(one, key_header=FIRST).json()["id"]
        assert in_process.charge(other, key_header=FIRST).json()["id"] == first
        assert error_of(in_process.charge(other, key_header=FIRST, amount=77)) == (
            "idempotency_key_reused"
        )


def test_a_callers_key_spans_endpoints(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(CALLER)
        made = in_process.charge(key, key_header="june")
        refused = in_process.charge(key, INTENTS, key_header="june")
        assert (refused.status_code, error_of(refused)) == (400, "idempotency_key_reused")
        assert refused.json()["error"]["keybrake"]["charge_id"] == made.json()["id"]
        assert in_process.charge(key, INTENTS, key_header="july", amount=50).status_code == 200
        assert error_of(in_process.charge(key, key_header="july", amount=50)) == (
            "idempotency_key_reused"
        )
        assert in_process.charge(key, key_header="june").json()["id"] == made.json()["id"]
        assert len(in_process.charges()) == 1
