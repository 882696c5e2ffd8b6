"""What Stripe's `Date` may do to time, and what not: on both stores, with a Stripe that lies.

The three clocks are in the test's hand: Stripe's `Date`, the host's clock and the boot clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from typing_extensions import override

from kb_mcp.cli import main
from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.clock import APART_MS, STANDS_STILL_MS
from kb_mcp.sandbox.app import Sandbox
from kb_mcp.serving.machine import boottime_ms, host_ms, random_bytes, random_name
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.postgres import database, server  # noqa: F401 fixtures are found by name
from tests.sandbox.driver import start_in_thread

DAY_MS = 86_400_000
MINUTE_MS = 60_000
CLOCK_OFF = {"ledger_unavailable"}
Dated = Callable[[], str | None]


class LyingStripe(Sandbox):
    """The sandbox, with any `Date`, or none, in its answers: `dates` are used up one by one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "elsewhere.db", clock=self._now, new_id=random_name)
        self.off_ms = 0
        self.passed_ms = 0
        self.date: Dated = self.right
        self.next_dates: list[str | None] = []

    def _now(self) -> int:
        return host_ms() + self.passed_ms

    def right(self, off_ms: int = 0) -> str:
        return formatdate((self._now() + off_ms) // 1000, usegmt=True)

    @override
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def dated(message: Any) -> None:
            if message["type"] == "http.response.start":
                date = self.next_dates.pop(0) if self.next_dates else self.date()
                headers = [each for each in message["headers"] if each[0].lower() != b"date"]
                if date is not None:
                    headers.append((b"date", date.encode()))
                message = {**message, "headers": headers}
            await send(message)

        await super().__call__(scope, receive, dated)


class Hands:
    """The host's clock and the boot clock of one proxy, turned by hand."""

    def __init__(self, in_process: InProcessProxy, stripe: LyingStripe) -> None:
        self._stripe = stripe
        self.host_off_ms = 0
        self.clock = in_process.proxy.store.clock
        now = self.clock.host_ms
        self.clock.host_ms = self.clock._plain_ms = (  # noqa: SLF001 - and what it says here
            lambda: now() + self._stripe.passed_ms + self.host_off_ms
        )
        self.clock._steady_ms = lambda: boottime_ms() + self._stripe.passed_ms  # noqa: SLF001 - as above
        time = in_process.proxy.time
        time.reads = replace(time.reads, boottime_ms=self.clock._steady_ms)  # noqa: SLF001 - as above

    def pass_time(self, milliseconds: int) -> None:
        self._stripe.passed_ms += milliseconds


@pytest.fixture(params=["sqlite", "postgres"])
def stripe(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LyingStripe:
    if request.param == "postgres":
        database = request.getfixturevalue("database")
        monkeypatch.setattr(InProcessProxy, "store", database.environ)
    return LyingStripe(tmp_path)


@contextmanager
def proxy_before(
    stripe: LyingStripe, folder: Path, host_off_ms: int = 0
) -> Iterator[tuple[InProcessProxy, Hands]]:
    """Start a proxy in test mode, as after a start of the machine's process."""
    with start_in_thread(stripe) as url:
        environ = {"KEYBRAKE_STRIPE_KEY": "rk_test_Abc", "KEYBRAKE_STRIPE_API_BASE": url}
        with InProcessProxy(folder, **environ) as in_process:
            hands = Hands(in_process, stripe)
            hands.host_off_ms = host_off_ms
            in_process.run(in_process.proxy.start())
            yield in_process, hands


def charge_count(stripe: LyingStripe) -> int:
    with stripe._store.transaction() as records:  # noqa: SLF001 - what really happened
        return len(records.select("charge"))


def bill(in_process: InProcessProxy, key: Issued, **form: Any) -> str:
    """Charge; return "charged", or the code of the refusal."""
    answer = in_process.charge(key, **form)
    return "charged" if answer.status_code == 200 else error_of(answer)


def issue_until(in_process: InProcessProxy, expires_at: int) -> Issued:
    wanted = NewKey(policy=built_in("billing"), mode="test", expires_at=expires_at, uncapped=True)
    ledger = in_process.proxy.store.ledger
    key, minted = in_process.run(issue_key(ledger, wanted, random_bytes, "test"))
    return Issued(key.id, minted.token)


def nothing() -> str | None:
    return None


def nonsense() -> str | None:
    return "yesterday"


@pytest.mark.parametrize("kind", ["right", "none", "nonsense"])
def test_life_is_normal_with_a_right_date_and_with_none(
    stripe: LyingStripe, tmp_path: Path, kind: str
) -> None:
    dates: dict[str, Dated] = {"right": stripe.right, "none": nothing, "nonsense": nonsense}
    stripe.date = dates[kind]
    with proxy_before(stripe, tmp_path) as (in_process, hands):
        key = in_process.issue(daily={"usd": 2900})
        assert bill(in_process, key, period="2026-11") == "charged"
        assert bill(in_process, key, period="2026-11") == "charged"
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "spend_cap_exceeded"
        hands.pass_time(DAY_MS)
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "charged"
    with proxy_before(stripe, tmp_path) as (in_process, _):
        assert bill(in_process, key, customer="cus_C3", period="2026-11") == "spend_cap_exceeded"
    assert charge_count(stripe) == 2


@pytest.mark.parametrize("days", [1, 40, -1])
def test_one_answer_whose_date_is_wrong_turns_no_day_and_no_month(
    stripe: LyingStripe, tmp_path: Path, days: int
) -> None:
    with proxy_before(stripe, tmp_path) as (in_process, _):
        key = in_process.issue(daily={"usd": 2900}, monthly={"usd": 2900})
        stripe.next_dates = [stripe.right(days * DAY_MS)]
        assert bill(in_process, key, period="2026-11") == "charged"
        stripe.next_dates = [stripe.right(days * DAY_MS)]  # of the question for the time, too
        refused = bill(in_process, key, customer="cus_B2", period="2026-11")
        assert refused in {"spend_cap_exceeded", *CLOCK_OFF}
        # The next answer is right: the dispute is over, and the cap is what it was.
        stripe.next_dates.clear()
        in_process.run(in_process.proxy.time.reads.fetch("/v1/charges?limit=1"))
        refused = bill(in_process, key, customer="cus_B2", period="2026-11")
        assert refused == "spend_cap_exceeded"
    assert charge_count(stripe) == 1


def test_a_wrong_date_begins_no_next_occurrence(stripe: LyingStripe, tmp_path: Path) -> None:
    with proxy_before(stripe, tmp_path) as (in_process, _):
        key = in_process.issue()
        made = in_process.charge(key).json()["id"]
        stripe.date = lambda: stripe.right(DAY_MS)
        in_process.run(in_process.proxy.time.reads.fetch("/v1/charges?limit=1"))
        for _ in range(3):
            answer = in_process.charge(key)
            told = answer.json().get("id") or error_of(answer)
            assert told in {made, "duplicate_suspected", *CLOCK_OFF}
    assert charge_count(stripe) == 1


@pytest.mark.parametrize("days", [1, 40])
def test_a_stripe_that_goes_on_lying_is_not_believed_either(
    stripe: LyingStripe, tmp_path: Path, days: int
) -> None:
    with proxy_before(stripe, tmp_path) as (in_process, hands):
        key = in_process.issue(daily={"usd": 2900})
        assert bill(in_process, key, period="2026-11") == "charged"
        stripe.date = lambda: stripe.right(days * DAY_MS)
        for _ in range(4):
            in_process.run(in_process.proxy.time.reads.fetch("/v1/charges?limit=1"))
            hands.pass_time(APART_MS)
            refused = bill(in_process, key, customer="cus_B2", period="2026-11")
            assert refused in {"spend_cap_exceeded", *CLOCK_OFF}
    assert charge_count(stripe) == 1


def test_a_host_a_day_off_works_by_stripes_clock_after_half_a_minute(
    stripe: LyingStripe, tmp_path: Path
) -> None:
    with proxy_before(stripe, tmp_path, host_off_ms=DAY_MS) as (in_process, hands):
        key = in_process.issue(daily={"usd": 2900})
        assert bill(in_process, key, period="2026-11") == "ledger_unavailable"
        hands.pass_time(APART_MS + 1_000)
        in_process.run(in_process.proxy.app.pipeline.follow())
        assert bill(in_process, key, period="2026-11") == "charged"
        (operation,) = in_process.operations()
        assert abs(operation.reserved_at - stripe._now()) < MINUTE_MS  # noqa: SLF001 the true time
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "spend_cap_exceeded"
    assert charge_count(stripe) == 1


@pytest.mark.parametrize("date", ["Wed, 01 Jan 2025 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_date_that_never_moves_is_read_as_none(
    stripe: LyingStripe, tmp_path: Path, date: str
) -> None:
    stripe.date = lambda: date
    with proxy_before(stripe, tmp_path) as (in_process, hands):
        key = in_process.issue(daily={"usd": 2900})
        hands.pass_time(STANDS_STILL_MS)
        assert bill(in_process, key, period="2026-11") == "charged"
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "spend_cap_exceeded"
    with proxy_before(stripe, tmp_path) as (in_process, hands):
        hands.pass_time(STANDS_STILL_MS)
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "spend_cap_exceeded"
    assert charge_count(stripe) == 1


def test_keys_and_approvals_do_not_live_longer_or_shorter_by_one_date(
    stripe: LyingStripe, tmp_path: Path
) -> None:
    with proxy_before(stripe, tmp_path) as (in_process, hands):
        key = issue_until(in_process, hands.clock.now() + 60 * MINUTE_MS)
        assert bill(in_process, key, period="2026-11") == "charged"
        stripe.date = lambda: stripe.right(90 * MINUTE_MS)
        in_process.run(in_process.proxy.time.reads.fetch("/v1/charges?limit=1"))
        # By Stripe it has expired, by the host it has not: nobody is told either.
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "ledger_unavailable"
        stripe.date = stripe.right
        in_process.run(in_process.proxy.time.reads.fetch("/v1/charges?limit=1"))
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "charged"
        hands.pass_time(61 * MINUTE_MS)
        assert bill(in_process, key, customer="cus_C3", period="2026-11") == "vault_key_expired"


def test_an_operator_ends_a_dispute(
    stripe: LyingStripe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(in_process: InProcessProxy, *arguments: str) -> Any:
        for name, value in in_process.environ.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.stdout, result.output
        return json.loads(result.stdout)

    # A host that was a day ahead when it billed, alone; then it was set right.
    stripe.date = lambda: None
    with proxy_before(stripe, tmp_path, host_off_ms=DAY_MS) as (in_process, _):
        key = in_process.issue()
        assert bill(in_process, key, period="2026-11") == "charged"
    stripe.date = stripe.right
    with proxy_before(stripe, tmp_path) as (in_process, _):
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "ledger_unavailable"
        checks = command(in_process, "doctor")["checks"]
        (clock,) = [each for each in checks if each["name"] == "clock"]
        assert (clock["ok"], "s ahead" in clock["detail"]) == (False, True)
        assert "settings confirm-clock" in clock["detail"]
        command(in_process, "settings", "confirm-clock")
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "charged"
        (row,) = [each for each in in_process.audit() if each["decision"] == "clock_confirmed"]
        assert row["kind"] == "admin"
        checks = command(in_process, "doctor")["checks"]
        assert all(each["ok"] for each in checks if each["name"] == "clock")
    assert charge_count(stripe) == 2


def test_what_was_sent_within_a_second_of_another_by_a_clock_ahead_is_in_doubt_too(
    stripe: LyingStripe, tmp_path: Path
) -> None:
    stripe.date = lambda: None
    with proxy_before(stripe, tmp_path, host_off_ms=DAY_MS) as (in_process, hands):
        key = in_process.issue()
        assert bill(in_process, key, customer="cus_B2", period="2026-11") == "charged"
        base = in_process.environ["KEYBRAKE_STRIPE_API_BASE"]
        fault = {"match": "POST /v1/charges", "kind": "drop_after"}
        assert httpx.post(f"{base}/_sandbox/faults", json=[fault]).status_code == 200
        assert bill(in_process, key, period="2026-11") == "outcome_unknown"
        hands.host_off_ms, stripe.date = 0, stripe.right
        # Stripe has forgotten the key by then; by the store's dates it is two hours old.
        hands.pass_time(DAY_MS + 7_200_000)
        for _ in range(2):
            hands.pass_time(APART_MS + 1000)
            bill(in_process, key, period="2026-11")
    assert charge_count(stripe) == 2
