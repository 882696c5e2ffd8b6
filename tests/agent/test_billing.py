"""Charging and looking up, against a proxy on a real socket."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import Unavailable, call_tool
from kb_mcp.agent.catalogue import ChargeArguments, ChargeStatusArguments, ToolName
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import AddressError, NetworkLine
from kb_mcp.agent.outcomes import ProxyUnavailableError, RateLimitedError
from tests.agent.conftest import AUDIT_KEY, BILLING_KEY, Says, StubProxy, charge, refusal

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")
KEY = "38de2d05855909930dc2287649e68ba3"
POST = "POST /stripe/v1/charges"
NOBODY = CallContext()


def test_a_charge_sends_the_bill_its_key_and_who_asks(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge(), {"Keybrake-Operation": "op_1"}))

    result = billing.charge(BILL, CallContext("agent\r\nX-Evil: 1", "s" * 500))

    sent = proxy.seen[0]
    assert sent.form == {
        "amount": "2900",
        "currency": "usd",
        "customer": "cus_Abc123",
        "description": "Subscription 2026-06",
        "metadata[billing_period]": "2026-06",
    }
    assert sent.headers["idempotency-key"] == KEY
    assert sent.headers["authorization"] == f"Bearer {BILLING_KEY}"
    assert sent.headers["keybrake-agent"] == "agentX-Evil: 1"
    assert sent.headers["keybrake-session"] == "s" * 128
    assert "x-stripe-client-telemetry" not in sent.headers
    assert result.model_dump(exclude_none=True) == {
        "status": "succeeded",
        "charge_id": "ch_1",
        "amount_cents": 2900,
        "currency": "usd",
        "customer_id": "cus_Abc123",
        "billing_period": "2026-06",
        "idempotency_key": KEY,
        "already_charged": False,
        "livemode": False,
        "operation_id": "op_1",
        "message": "29.00 USD was charged. This is test mode: no real money.",
        "next_step": "Done. Tell the user, with the charge id. Do not charge again.",
    }


def test_a_replay_says_that_nothing_was_charged_now(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge(), {"Idempotent-Replayed": "true"}))

    result = billing.charge(BILL, NOBODY)

    assert result.already_charged
    assert result.charge_id == "ch_1"
    assert "nothing was charged now" in result.message


@pytest.mark.parametrize(
    ("says", "status", "code", "already"),
    [
        (Says(200, charge(status="pending")), "pending", None, False),
        (Says(403, refusal("spend_cap_exceeded")), "refused", "spend_cap_exceeded", False),
        (Says(401, refusal("vault_key_revoked")), "refused", "vault_key_revoked", False),
        (Says(403, refusal("approval_required")), "refused", "approval_required", False),
        (
            Says(400, refusal("period_already_charged", charge_id="ch_9", operation="op_9")),
            "refused",
            "period_already_charged",
            True,
        ),
        (
            Says(409, refusal("idempotency_key_in_use"), {"Stripe-Should-Retry": "false"}),
            "unknown",
            "idempotency_key_in_use",
            False,
        ),
        (
            Says(504, refusal("outcome_unknown"), {"Stripe-Should-Retry": "false"}),
            "unknown",
            "outcome_unknown",
            False,
        ),
        (
            Says(502, refusal("upstream_rejected_key"), {"Stripe-Should-Retry": "false"}),
            "refused",
            "upstream_rejected_key",
            False,
        ),
        (
            Says(
                402,
                {
                    "error": {
                        "type": "card_error",
                        "code": "card_declined",
                        "decline_code": "insufficient_funds",
                        "charge": "ch_d",
                    }
                },
            ),
            "failed",
            "insufficient_funds",
            False,
        ),
        (
            Says(400, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}),
            "failed",
            "resource_missing",
            False,
        ),
        (
            Says(500, {"error": {"type": "api_error"}}, {"Stripe-Should-Retry": "false"}),
            "unknown",
            "outcome_unknown",
            False,
        ),
        (
            Says(502, "<html>bad gateway</html>", {"Stripe-Should-Retry": "false"}),
            "unknown",
            "outcome_unknown",
            False,
        ),
        (Says(302, {}, {"Location": "http://127.0.0.1:1/"}), "unknown", "outcome_unknown", False),
        (Says(403, {"error": "text"}), "unknown", "outcome_unknown", False),
        (Says(200, "not json"), "unknown", "outcome_unknown", False),
        (Says(200, charge(status="new_status")), "unknown", None, False),
    ],
)
def test_every_answer_has_its_status(
    proxy: StubProxy, billing: Billing, says: Says, status: str, code: str | None, already: bool
) -> None:
    proxy.on(POST, says)

    result = billing.charge(BILL, NOBODY)

    assert (result.status, result.code, result.already_charged) == (status, code, already)
    assert len(proxy.seen) == 1
    if status in {"unknown", "refused"}:
        assert "Do not" in result.next_step


@pytest.mark.parametrize("code", ["ledger_unavailable", "draining", "overloaded", "ledger_behind"])
def test_a_proxy_that_cannot_serve_is_unavailable(
    proxy: StubProxy, billing: Billing, code: str
) -> None:
    proxy.on(POST, Says(503, refusal(code), {"Stripe-Should-Retry": "false"}))

    with pytest.raises(ProxyUnavailableError):
        billing.charge(BILL, NOBODY)


def test_a_rate_limit_tells_how_long_to_wait(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(429, refusal("rate_limited"), {"Retry-After": "7"}))

    with pytest.raises(RateLimitedError) as limit:
        billing.charge(BILL, NOBODY)

    assert limit.value.retry_after_s == 7


def test_a_lost_answer_is_asked_for_again_under_the_same_key(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(drop=True), Says(200, charge(), {"Idempotent-Replayed": "true"}))

    result = billing.charge(BILL, NOBODY)

    assert (result.status, result.charge_id) == ("succeeded", "ch_1")
    assert [seen.headers["idempotency-key"] for seen in proxy.seen] == [KEY, KEY]


@pytest.mark.parametrize(
    "then",
    [
        Says(drop=True),
        Says(503, refusal("draining"), {"Stripe-Should-Retry": "false"}),
        Says(401, refusal("vault_key_revoked")),
        Says(429, refusal("rate_limited")),
    ],
)
def test_after_a_lost_answer_nothing_but_the_bill_itself_is_a_no(
    proxy: StubProxy, billing: Billing, then: Says
) -> None:
    proxy.on(POST, Says(drop=True), then)

    assert billing.charge(BILL, NOBODY).status == "unknown"


def test_nobody_listening_means_nothing_was_sent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        lonely = Billing({ToolName.CHARGE: BILLING_KEY}, NetworkLine(address))
        with pytest.raises(ProxyUnavailableError):
            lonely.charge(BILL, NOBODY)
        lonely.close()


def test_the_environment_does_not_redirect_a_vault_key(
    proxy: StubProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    proxy.on(POST, Says(200, charge()))
    direct = Billing({ToolName.CHARGE: BILLING_KEY}, NetworkLine(proxy.url))

    assert direct.charge(BILL, NOBODY).status == "succeeded"
    direct.close()


@pytest.mark.parametrize(
    "address",
    ["http://proxy.internal:8787", "ftp://127.0.0.1", "127.0.0.1:8787", "http://u@127.0.0.1", ""],
)
def test_an_address_that_would_show_the_key_is_refused(address: str) -> None:
    with pytest.raises(AddressError):
        Billing({ToolName.CHARGE: BILLING_KEY}, NetworkLine(address))


def test_plain_http_can_be_allowed() -> None:
    NetworkLine("http://proxy.internal:8787", allow_http=True).close()


@pytest.mark.parametrize("code", ["vault_key_expired", "vault_key_revoked", "vault_key_unknown"])
def test_a_key_that_was_rotated_is_read_once_more(proxy: StubProxy, code: str) -> None:
    proxy.on(POST, Says(401, refusal(code)), Says(200, charge()))
    tokens = iter(["vk_test_old", "vk_test_new", "vk_test_never"])
    rotating = Billing({ToolName.CHARGE: lambda: next(tokens)}, NetworkLine(proxy.url))

    assert rotating.charge(BILL, NOBODY).status == "succeeded"
    assert rotating.charge(BILL, NOBODY).status == "succeeded"
    used = [seen.headers["authorization"] for seen in proxy.seen]
    assert used == ["Bearer vk_test_old", "Bearer vk_test_new", "Bearer vk_test_new"]
    rotating.close()


def broken() -> str:
    raise ConnectionError("the secret store is away, and vk_test_secret is its text")


def test_a_key_that_cannot_be_read_means_that_nothing_was_sent(
    proxy: StubProxy, caplog: pytest.LogCaptureFixture
) -> None:
    unread = Billing({ToolName.CHARGE: broken}, NetworkLine(proxy.url))

    answer = call_tool(unread, "charge", BILL.model_dump(exclude_none=True), NOBODY)

    assert isinstance(answer, Unavailable)
    assert proxy.seen == []
    assert "ConnectionError" in caplog.text
    assert "vk_test" not in caplog.text
    unread.close()


def test_a_refused_key_whose_successor_cannot_be_read_is_refused(proxy: StubProxy) -> None:
    proxy.on(POST, Says(401, refusal("vault_key_expired")))
    kept = ["vk_test_old"]
    rotating = Billing(
        {ToolName.CHARGE: lambda: kept.pop() if kept else broken()}, NetworkLine(proxy.url)
    )

    assert rotating.charge(BILL, NOBODY).code == "vault_key_expired"
    assert len(proxy.seen) == 1
    rotating.close()


def test_a_key_that_stays_the_same_is_not_tried_twice(proxy: StubProxy) -> None:
    proxy.on(POST, Says(401, refusal("vault_key_revoked")))
    same = Billing({ToolName.CHARGE: lambda: BILLING_KEY}, NetworkLine(proxy.url))

    assert same.charge(BILL, NOBODY).code == "vault_key_revoked"
    assert len(proxy.seen) == 1
    same.close()


def test_a_live_key_says_so_even_when_refused(proxy: StubProxy) -> None:
    proxy.on(POST, Says(403, refusal("spend_cap_exceeded")))
    live = Billing({ToolName.CHARGE: "vk_live_x_y"}, NetworkLine(proxy.url))

    assert live.charge(BILL, NOBODY).livemode
    live.close()


# Looking up


def test_a_charge_is_looked_up_by_its_id_with_the_audit_key(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge(amount_refunded=900, disputed=True)))

    found = billing.charge_status(ChargeStatusArguments(charge_id="ch_1"), NOBODY)

    assert proxy.seen[0].headers["authorization"] == f"Bearer {AUDIT_KEY}"
    assert found.found
    assert (found.status, found.amount_cents, found.amount_refunded) == ("succeeded", 2900, 900)
    assert found.disputed
    assert found.receipt_url == "https://receipts.example/1"
    assert found.created == "2026-05-28T20:26:40Z"
    assert found.billing_period == "2026-06"
    assert "9.00 USD of it was refunded" in found.message


def by_bill() -> ChargeStatusArguments:
    return ChargeStatusArguments(customer_id="cus_Abc123", billing_period="June 2026")


def operation(**fields: Any) -> dict[str, Any]:
    return {
        "id": "op_1",
        "state": "succeeded",
        "amount": 2900,
        "currency": "usd",
        "customer_id": "cus_Abc123",
        "billing_period": "2026-06",
        "charge_id": "ch_1",
        "created_at": "2026-06-01T00:00:00Z",
        **fields,
    }


def test_a_bill_is_looked_up_in_the_ledger_and_then_at_stripe(
    proxy: StubProxy, billing: Billing
) -> None:
    failed = operation(state="failed", charge_id=None)
    proxy.on("GET /keybrake/v1/operations", Says(200, {"data": [failed, operation()]}))
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge()))

    found = billing.charge_status(by_bill(), NOBODY)

    assert proxy.seen[0].query == {"customer_id": "cus_Abc123", "billing_period": "2026-06"}
    assert (found.charge_id, found.receipt_url) == ("ch_1", "https://receipts.example/1")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("unknown", "unknown"),
        ("reserved", "unknown"),
        ("awaiting_approval", "awaiting_approval"),
        ("failed", "failed"),
        ("voided", "voided"),
    ],
)
def test_an_operation_without_a_charge_is_described(
    proxy: StubProxy, billing: Billing, state: str, status: str
) -> None:
    entry = operation(state=state, charge_id=None)
    proxy.on("GET /keybrake/v1/operations", Says(200, {"data": [entry]}))

    found = billing.charge_status(by_bill(), NOBODY)

    assert (found.found, found.status, found.amount_cents) == (True, status, 2900)


def test_nothing_in_the_ledger_is_not_found(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("GET /keybrake/v1/operations", Says(200, {"data": []}))

    assert not billing.charge_status(by_bill(), NOBODY).found


def test_an_unknown_charge_id_is_not_found(proxy: StubProxy, billing: Billing) -> None:
    missing = {"error": {"type": "invalid_request_error", "code": "resource_missing"}}
    proxy.on("GET /stripe/v1/charges/ch_2", Says(404, missing))

    found = billing.charge_status(ChargeStatusArguments(charge_id="ch_2"), NOBODY)

    assert (found.found, found.status) == (False, None)


def test_a_key_that_may_not_look_says_nothing_about_the_charge(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(403, refusal("vault_key_not_authorized")))

    found = billing.charge_status(ChargeStatusArguments(charge_id="ch_1"), NOBODY)

    assert (found.found, found.status) == (False, "refused")
    assert "nothing about whether a charge exists" in found.message


@pytest.mark.parametrize("says", [Says(500, {"error": {}}), Says(200, "no json"), Says(drop=True)])
def test_a_look_up_that_fails_is_unavailable(
    proxy: StubProxy, billing: Billing, says: Says
) -> None:
    proxy.on("GET /keybrake/v1/operations", says)

    with pytest.raises(ProxyUnavailableError):
        billing.charge_status(by_bill(), NOBODY)
