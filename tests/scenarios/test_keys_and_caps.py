"""Keys that decline, freeze, rotate and are revoked, and caps over midnight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kb_mcp.operators.actions.keys import revoke_key, rotate_key, unfreeze_key
from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.serving.machine import random_bytes
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.scenarios.acts import (
    Aside,
    broken_invariants,
    day_windows,
    follow,
    policy,
    turn_to_midnight,
)

OVERLAP_MS = 3_600_000


def rotate(in_process: InProcessProxy, key: Issued) -> Issued:
    successor, minted = in_process.run(
        rotate_key(in_process.proxy.store.ledger, KeyId(key.id), OVERLAP_MS, random_bytes, "test")
    )
    return Issued(successor.id, minted.token)


@pytest.mark.parametrize("fate", ["drop_after", "drop_before"])
def test_a_charge_sent_before_midnight_counts_in_the_day_it_was_reserved(
    tmp_path: Path, fate: str
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 2900})
        turn_to_midnight(in_process, before_s=60)
        follow(in_process)
        in_process.fault(fate)
        assert in_process.charge(key, period="2026-11").status_code == 504
        (yesterday,) = day_windows(in_process)
        in_process.turn_clock(120)
        # Today's window is empty, and what is still open yesterday takes nothing from it.
        assert in_process.charge(key, customer="cus_B2", period="2026-11").status_code == 200
        in_process.turn_clock(700)
        in_process.recover()
        windows = day_windows(in_process)
        assert windows.pop(yesterday) == (0, 2900 if fate == "drop_after" else 0)
        assert list(windows.values()) == [(0, 2900)]
        assert broken_invariants(in_process) == []


def test_a_charge_resent_after_midnight_still_counts_where_it_was_reserved(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 2900})
        turn_to_midnight(in_process, before_s=60)
        in_process.fault("drop_before")
        in_process.charge(key, period="2026-11")
        (yesterday,) = day_windows(in_process)
        in_process.turn_clock(120)
        assert in_process.charge(key, period="2026-11").status_code == 200
        assert day_windows(in_process)[yesterday] == (0, 2900)
        assert in_process.charge(key, customer="cus_B2", period="2026-11").status_code == 200
        assert error_of(in_process.charge(key, customer="cus_C3", period="2026-11")) == (
            "spend_cap_exceeded"
        )


def test_declines_freeze_the_key_and_an_operator_thaws_it(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(policy(daily_declines=3))
        in_process.fault("402", times=3)
        for number in range(3):
            assert (
                in_process.charge(key, customer=f"cus_D{number}", period="2026-11").status_code
                == 402
            )
        frozen = in_process.charge(key, customer="cus_E1", period="2026-11")
        assert (frozen.status_code, error_of(frozen)) == (403, "vault_key_frozen")
        successor = rotate(in_process, key)
        assert error_of(in_process.charge(successor, customer="cus_E1", period="2026-11")) == (
            "vault_key_frozen"
        )
        assert in_process.charges() == []
        in_process.run(unfreeze_key(in_process.proxy.store.ledger, KeyId(key.id), "seen to", "me"))
        assert in_process.charge(successor, customer="cus_E1", period="2026-11").status_code == 200
        assert broken_invariants(in_process) == []


def test_rotation_keeps_what_was_spent(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 3000})
        assert in_process.charge(key, period="2026-11").status_code == 200
        successor = rotate(in_process, key)
        refused = in_process.charge(successor, customer="cus_B2", amount=101, period="2026-11")
        assert (error_of(refused), refused.json()["error"]["keybrake"]["left"]) == (
            "spend_cap_exceeded", 100,
        )  # fmt: skip
        # Both at once, over what is left: one of them.
        with ThreadPoolExecutor(2) as pool:
            codes = pool.map(
                lambda each: (
                    in_process.charge(
                        each, customer=f"cus_{each.id}", amount=100, period="2026-11"
                    ).status_code
                ),
                (key, successor),
            )
            assert sorted(codes) == [200, 403]
        in_process.turn_clock(OVERLAP_MS // 1000)
        assert error_of(in_process.charge(key, period="2026-10")) == "vault_key_expired"


def test_nothing_is_reserved_once_a_revocation_has_committed(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        store = in_process.proxy.store
        charged = threading.Semaphore(0)

        def ask(number: int) -> list[str]:
            codes = []
            for bill in range(60):
                answer = in_process.charge(key, customer=f"cus_R{number}x{bill}", period="2026-11")
                codes.append("ok" if answer.status_code == 200 else error_of(answer))
                charged.release()
            return codes

        callers = [Aside(partial(ask, number)) for number in range(6)]
        for _ in range(40):
            assert charged.acquire(timeout=30)
        in_process.run(revoke_key(store.ledger, store.records, KeyId(key.id), "stolen", "me", 20))
        told = {code for caller in callers for code in caller.result()}
        assert told == {"ok", "vault_key_revoked"}
        rows = in_process.audit(key=key.id)
        acts = [row["decision"] for row in rows]
        assert "proceed" not in acts[acts.index("revoke") :]
        assert {each.state.value for each in in_process.operations()} <= {"succeeded", "failed"}
        succeeded = [each for each in in_process.operations() if each.state.value == "succeeded"]
        assert (
            len(succeeded) == in_process.stripe.get("/_sandbox/state").json()["counts"]["charges"]
        )
        assert broken_invariants(in_process) == []


def test_the_account_ceiling_holds_over_every_key(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path, KEYBRAKE_ACCOUNT_DAILY_CAP="5.00usd") as in_process:
        keys = [in_process.issue() for _ in range(4)]

        def ask(number: int) -> int:
            return in_process.charge(
                keys[number % 4], customer=f"cus_T{number}", amount=100, period="2026-11"
            ).status_code

        with ThreadPoolExecutor(40) as pool:
            statuses = list(pool.map(ask, range(40)))
        assert (statuses.count(200), statuses.count(403)) == (5, 35)
        assert day_windows(in_process, "account") == {next(iter(day_windows(in_process))): (0, 500)}


def test_caps_hold_per_currency_and_per_customer(tmp_path: Path) -> None:
    caps = CapRules(daily={"usd": 10_000, "jpy": 500}, per_customer_daily={"usd": 3000, "jpy": 500})
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(policy(caps=caps))
        assert in_process.charge(key, period="2026-11").status_code == 200
        over = in_process.charge(key, amount=101, period="2026-10")
        assert over.json()["error"]["keybrake"]["cap_kind"] == "per customer and day"
        yen = in_process.charge(
            key, customer="cus_B2", amount=500, currency="jpy", period="2026-11"
        )
        assert yen.status_code == 200
        more = in_process.charge(
            key, customer="cus_C3", amount=50, currency="jpy", period="2026-11"
        )
        assert more.json()["error"]["keybrake"]["cap_kind"] == "per key and day"
        euro = in_process.charge(key, customer="cus_C3", currency="eur", period="2026-11")
        assert error_of(euro) == "currency_not_allowed"
