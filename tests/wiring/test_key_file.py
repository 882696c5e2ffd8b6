"""A Stripe key that was rotated under a running proxy: its file is read again, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kb_mcp.wiring import upstream
from tests.in_process_proxy import InProcessProxy, error_of
from tests.raw_stripe import KEY, RawStripe, error, raw_stripe

SECOND = "rk_test_second"


@pytest.fixture
def stripe() -> Iterator[RawStripe]:
    with raw_stripe() as stripe:
        yield stripe


@pytest.fixture
def proxy(
    stripe: RawStripe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcessProxy]:
    monkeypatch.setattr(upstream, "REREAD_EVERY_MS", 0)
    (tmp_path / "key").write_text(KEY)
    environ = {
        "KEYBRAKE_STRIPE_KEY_FILE": str(tmp_path / "key"),
        "KEYBRAKE_STRIPE_API_BASE": stripe.url,
    }
    with InProcessProxy(tmp_path, **environ) as proxy:
        yield proxy


def rotate(proxy: InProcessProxy, stripe: RawStripe, key: str, account: str = "acct_1") -> None:
    """Make `key` the one in the file, and let Stripe forget the first."""
    (proxy.folder / "key").write_text(f"{key}\n")
    stripe.accounts.pop(KEY, None)
    stripe.accounts[key] = account


@pytest.mark.parametrize("reads_account", [True, False])
def test_a_rotated_key_is_read_from_its_file_and_the_request_goes_on(
    proxy: InProcessProxy, stripe: RawStripe, reads_account: bool
) -> None:
    stripe.may_read_account = reads_account
    key = proxy.issue()
    first = proxy.charge(key, period="2026-11").json()["id"]
    rotate(proxy, stripe, SECOND)
    second = proxy.charge(key, period="2026-10")
    assert second.status_code == 200
    assert proxy.client.get("/readyz").status_code == 200
    assert [each["id"] for each in stripe.made()] == [first, second.json()["id"]]
    # It went out twice under one idempotency key: with the old API key, and with the new one.
    sends = [each for each in stripe.asked if each.method == "POST"]
    assert [each.api_key for each in sends] == [KEY, KEY, SECOND]
    assert sends[1].idempotency_key == sends[2].idempotency_key
    assert sends[1].form == sends[2].form


def test_what_the_key_could_not_read_is_found_once_it_is_rotated(
    proxy: InProcessProxy, stripe: RawStripe
) -> None:
    key = proxy.issue()
    proxy.charge(key, period="2026-10")
    stripe.script = lambda asked: (stripe.behave(asked), error(500, "broken"))[1]
    assert proxy.charge(key, period="2026-11").status_code == 504
    stripe.script = lambda _: None
    rotate(proxy, stripe, SECOND)
    proxy.run(proxy.proxy.recovery.run())
    assert {each.state.value for each in proxy.operations()} == {"succeeded"}


@pytest.mark.parametrize("reads_account", [True, False])
def test_a_key_of_another_account_is_never_used(
    proxy: InProcessProxy, stripe: RawStripe, reads_account: bool
) -> None:
    stripe.may_read_account = reads_account
    key = proxy.issue()
    proxy.run(proxy.proxy.start())
    proxy.charge(key, period="2026-11")
    rotate(proxy, stripe, SECOND, account="acct_2")
    for period in ("2026-10", "2026-09"):
        answer = proxy.charge(key, period=period)
        assert (answer.status_code, error_of(answer)) == (502, "upstream_rejected_key")
    assert proxy.client.get("/readyz").status_code == 503
    assert stripe.made("acct_2") == []
    assert all(each.api_key == KEY for each in stripe.asked if each.method == "POST")


@pytest.mark.parametrize(
    "text", ["", "rk_live_other", "sk_test_unrestricted", "vk_test_a_b", "two\nlines", "rk_test_"]
)
def test_what_is_no_key_for_this_store_is_not_used(
    proxy: InProcessProxy, stripe: RawStripe, text: str
) -> None:
    key = proxy.issue()
    proxy.charge(key, period="2026-11")
    rotate(proxy, stripe, text)
    answer = proxy.charge(key, period="2026-10")
    assert (answer.status_code, error_of(answer)) == (502, "upstream_rejected_key")
    (proxy.folder / "key").unlink()
    assert proxy.charge(key, period="2026-09").status_code == 502
    # Once the file holds a right one, it is used.
    rotate(proxy, stripe, SECOND)
    assert proxy.charge(key, period="2026-10").status_code == 200


def test_a_key_that_cannot_be_proven_now_is_asked_for_again(
    proxy: InProcessProxy, stripe: RawStripe
) -> None:
    stripe.may_read_account = False
    key = proxy.issue()
    proxy.run(proxy.proxy.start())  # a serving process knows the key that it began with
    proxy.charge(key, period="2026-11")
    rotate(proxy, stripe, SECOND)
    stripe.script = lambda asked: error(500, "broken") if asked.api_key == SECOND else None
    assert proxy.charge(key, period="2026-10").status_code == 502
    stripe.script = lambda _: None
    assert proxy.charge(key, period="2026-10").status_code == 200
    assert len(stripe.made()) == 2


def test_a_permission_that_is_missing_does_not_read_the_file(
    proxy: InProcessProxy, stripe: RawStripe
) -> None:
    key = proxy.issue()
    proxy.charge(key, period="2026-11")
    (proxy.folder / "key").write_text(SECOND)
    stripe.accounts[SECOND] = "acct_1"
    stripe.script = lambda asked: error(403, "forbidden") if asked.method == "POST" else None
    assert proxy.charge(key, period="2026-10").status_code == 502
    assert all(each.api_key == KEY for each in stripe.asked)
