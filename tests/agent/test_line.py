"""What is asked of the proxy, and over what: opened when the first call needs it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import stripe

import kb_mcp
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeArguments, ChargeStatusArguments, ToolName
from kb_mcp.agent.client.line import STRIPE_VERSION, CallContext
from kb_mcp.agent.client.network import NetworkLine, Trust
from kb_mcp.agent.outcomes import ProxyUnavailableError
from kb_mcp.traces import Trace
from tests.agent.conftest import Says, StubProxy, charge, in_process, refusal

POST = "POST /stripe/v1/charges"
BILL = ChargeArguments(customer_id="cus_A1", amount_cents=2900, billing_period="2026-06")
LOST_TO_SOMEBODY = Says(500, "<html>bad gateway</html>")


def that_cannot_be_opened(folder: Path) -> NetworkLine:
    return NetworkLine("https://127.0.0.1:9", trust=Trust(cert_file=folder / "none.pem"))


def test_a_line_that_cannot_be_opened_has_sent_nothing(tmp_path: Path) -> None:
    line = that_cannot_be_opened(tmp_path)

    with pytest.raises(ProxyUnavailableError):
        line.wait(line.create("vk_test_billing", "charges", {"amount": 100}, "key", {}))
    with pytest.raises(ProxyUnavailableError):
        line.wait(line.describe_key("vk_test_billing", {}))


def test_callers_that_failed_together_do_not_try_again_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    for jitter in (lambda _: 0, lambda below: below - 1):
        asyncio.run(NetworkLine("http://127.0.0.1:9", jitter=jitter).pause(2))

    assert slept == [2, pytest.approx(2.998)]


def test_a_line_that_nobody_used_is_closed_without_being_opened(tmp_path: Path) -> None:
    that_cannot_be_opened(tmp_path).close()


def test_the_answers_are_of_the_version_that_the_stripe_sdk_asks_for(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(200, charge()))

    billing.charge(BILL, CallContext())

    assert proxy.seen[0].headers["stripe-version"] == STRIPE_VERSION == stripe.api_version


def test_the_form_is_the_one_that_the_stripe_sdk_sends(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))
    bill = BILL.model_copy(
        update={"description": "50 % off: Grüße & = + ~ é/ü", "reference": "a b"}
    )
    sdk = stripe.StripeClient("vk_test_x", base_addresses={"api": f"{proxy.url}/stripe"})

    billing.charge(bill, CallContext())
    sdk.v1.charges.create(
        {
            "amount": 2900,
            "currency": "usd",
            "customer": "cus_A1",
            "description": bill.description or "",
            "metadata": {"billing_period": "2026-06", "reference": "a b"},
        }
    )

    ours, theirs = (seen.form for seen in proxy.seen)
    assert ours == theirs


def test_an_answer_that_somebody_else_gave_leaves_the_bill_in_doubt(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, LOST_TO_SOMEBODY, Says(401, refusal("vault_key_revoked")))

    assert billing.charge(BILL, CallContext()).status == "unknown"


def test_a_request_says_who_sends_it_and_what_it_takes(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))

    billing.charge(BILL, CallContext())

    headers = proxy.seen[0].headers
    assert (headers["user-agent"], headers["accept"]) == (
        f"kb-mcp/{kb_mcp.__version__}",
        "application/json",
    )


def test_an_id_is_cut_without_a_blank_at_its_end() -> None:
    headers = CallContext(agent_id=f" {'a' * 127} b", session_id="s\r\nCookie: x ").headers()

    assert headers == {"Keybrake-Agent": "a" * 127, "Keybrake-Session": "sCookie: x"}


@pytest.mark.parametrize("value", [" a=1", "a=1 ", "a=1\r\nCookie: x", "ä=1", "€", ""])
@pytest.mark.parametrize("here", [True, False], ids=["in process", "network"])
def test_a_header_that_cannot_be_sent_stops_a_charge_before_it_is_sent(
    proxy: StubProxy, billing: Billing, caplog: pytest.LogCaptureFixture, *, here: bool, value: str
) -> None:
    proxy.on(POST, Says(200, charge()))
    tools = Billing({ToolName.CHARGE: "vk_test_x"}, in_process(proxy)) if here else billing
    asked = CallContext(trace=Trace("00-1-1-00", value))

    with pytest.raises(ProxyUnavailableError):
        asyncio.run(tools.run(BILL, asked))

    assert proxy.seen == []
    assert "header tracestate" in caplog.text


@pytest.mark.parametrize("body", ["[]", "null", "7", '"ch_1"', "", "[" * 100_000])
def test_a_success_that_is_no_json_object_cannot_be_read(
    proxy: StubProxy, billing: Billing, body: str
) -> None:
    proxy.on(POST, Says(200, body))

    result = billing.charge(BILL, CallContext())

    assert (result.status, result.code) == ("unknown", "outcome_unknown")


def test_a_look_up_that_cannot_be_read_is_no_answer(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, "[]"))
    proxy.on("GET /keybrake/v1/operations", Says(200, "null"))

    with pytest.raises(ProxyUnavailableError):
        billing.charge_status(ChargeStatusArguments(charge_id="ch_1"), CallContext())


def test_no_argument_of_a_charge_is_lost_on_its_way(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("POST /stripe/v1/charges", Says(200, charge()))
    given = {"currency": "eur", "description": "Words", "reference": "order-7"}
    optional = {n for n, field in ChargeArguments.model_fields.items() if not field.is_required()}
    assert optional == given.keys()

    billing.charge(BILL, CallContext())
    for name, value in given.items():
        billing.charge(BILL.model_copy(update={name: value}), CallContext())

    plain, *sent = [seen.form for seen in proxy.seen]
    changed = [set(form.values()) - set(plain.values()) for form in sent]
    assert changed == [{value} for value in given.values()]
