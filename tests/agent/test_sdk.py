"""The line to the proxy, opened when the first call needs it."""

from __future__ import annotations

import errno
from typing import Never

import pytest
from stripe import _telemetry_id

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import CallContext
from kb_mcp.agent.catalogue import ChargeArguments
from kb_mcp.agent.line import finish
from kb_mcp.agent.outcomes import ProxyUnavailableError, Reply
from kb_mcp.agent.sdk import ProxySdk
from kb_mcp.agent.transport import open_client
from tests.agent.conftest import Says, StubProxy, charge

PROXY = "http://127.0.0.1:9"


def no_descriptor_left() -> Never:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_line_that_cannot_be_opened_has_sent_nothing() -> None:
    sdk = ProxySdk(PROXY, no_descriptor_left)

    with pytest.raises(ProxyUnavailableError):
        finish(sdk.create("vk_test_billing", "charges", {"amount": 100}, "key", {}))
    with pytest.raises(ProxyUnavailableError):
        finish(sdk.describe_key("vk_test_billing", {}))


def test_a_line_that_nobody_used_is_closed_without_being_opened() -> None:
    ProxySdk(PROXY, no_descriptor_left).close()


def no_home() -> Never:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_folder_charges_at_the_first_call(
    proxy: StubProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_telemetry_id, "_loaded", False)
    monkeypatch.setattr(_telemetry_id, "get_config_dir", no_home)
    proxy.on("POST /stripe/v1/charges", Says(200, charge()))
    sdk = ProxySdk(proxy.url, lambda: open_client(proxy.url))

    made = finish(sdk.create("vk_test_billing", "charges", {"amount": 100}, "key", {}))
    sdk.close()

    assert isinstance(made, Reply)
    assert made.fields["id"] == "ch_1"


def test_an_sdk_that_fails_before_it_sends_has_sent_nothing(
    proxy: StubProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk = ProxySdk(proxy.url, lambda: open_client(proxy.url))
    requestor = "stripe._api_requestor._APIRequestor.request_headers"
    monkeypatch.setattr(requestor, lambda *_args, **_more: no_home())

    with pytest.raises(ProxyUnavailableError):
        finish(sdk.create("vk_test_billing", "charges", {"amount": 100}, "key", {}))
    sdk.close()

    assert proxy.seen == []


def test_no_argument_of_a_charge_is_lost_on_its_way(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("POST /stripe/v1/charges", Says(200, charge()))
    bill = ChargeArguments(customer_id="cus_A1", amount_cents=2900, billing_period="2026-06")
    given = {"currency": "eur", "description": "Words", "reference": "order-7"}
    optional = {n for n, field in ChargeArguments.model_fields.items() if not field.is_required()}
    assert optional == given.keys()

    billing.charge(bill, CallContext())
    for name, value in given.items():
        billing.charge(bill.model_copy(update={name: value}), CallContext())

    plain, *sent = [seen.form for seen in proxy.seen]
    changed = [set(form.values()) - set(plain.values()) for form in sent]
    assert changed == [{value} for value in given.values()]
