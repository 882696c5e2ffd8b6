"""Stripe's SDKs as they come: only the key and the address are changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.clients.conftest import Served
from tests.clients.relay import broken_line
from tests.clients.stripe_sdks import Call, Sdk, node_sdk, python_sdk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def bill(customer: str, **more: Any) -> dict[str, Any]:
    metadata = {"billing_period": "2026-11"}
    return {"customer": customer, "amount": 2900, "currency": "usd", "metadata": metadata, **more}


def charged(served: Served, customer: str) -> list[str]:
    return [each["id"] for each in served.cluster.charges() if each["customer"] == customer]


def sync_client(base: str, key: str, params: Any) -> str:
    client = stripe.StripeClient(key, base_addresses={"api": base})
    return client.v1.charges.create(params).id


def async_client(base: str, key: str, params: Any) -> str:
    async def create() -> str:
        http = stripe.HTTPXClient()
        client = stripe.StripeClient(key, base_addresses={"api": base}, http_client=http)
        made = await client.v1.charges.create_async(params)
        await http.close_async()  # type: ignore[no-untyped-call]  # the SDK left it untyped
        return made.id

    return asyncio.run(create())


def module_level(base: str, key: str, params: Any) -> str:
    return stripe.Charge.create(**params, api_key=key).id


# The SDK's own way of handing a body to httpx is deprecated there.
@pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")
@pytest.mark.parametrize("prefix", ["", "/stripe", "/stripe/"], ids=["root", "prefix", "slash"])
@pytest.mark.parametrize("create", [sync_client, async_client, module_level])
def test_the_python_sdk_charges_once(
    served: Served,
    create: Callable[[str, str, Any], str],
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = served.url + prefix
    monkeypatch.setattr(stripe, "api_base", base)  # what the module-level form reads
    customer = f"cus_{create.__name__.replace('_', '')}{len(prefix)}"

    first, again = (create(base, served.billing, bill(customer)) for _ in range(2))

    assert first == again
    assert charged(served, customer) == [first]


@pytest.fixture(params=["python", "node"])
def sdk(request: pytest.FixtureRequest, tmp_path: Path) -> Sdk:
    if request.param == "python":
        return python_sdk
    return node_sdk(request.getfixturevalue("npm"), tmp_path)


@pytest.fixture
def customer(sdk: Sdk, request: pytest.FixtureRequest) -> str:
    """Return a customer of this test's own."""
    return f"cus_{abs(hash(request.node.nodeid))}"


def test_a_second_call_is_a_replay(served: Served, sdk: Sdk, customer: str) -> None:
    call = Call(served.billing, bill(customer))

    first, again = sdk(served.url, call, call)

    assert (first.error, first.replayed, again.replayed) == (None, False, True)
    assert charged(served, customer) == [first.id] == [again.id]


@pytest.mark.parametrize("period", [True, False], ids=["bill", "body"])
def test_the_sdks_own_retries_collapse(
    served: Served, sdk: Sdk, customer: str, period: bool
) -> None:
    params = bill(customer) if period else {**bill(customer), "metadata": {}}
    with broken_line(served.url, answers_lost=2) as line:
        (outcome,) = sdk(line, Call(served.billing, params, retries=2))

    assert (outcome.error, outcome.replayed) == (None, True)
    assert charged(served, customer) == [outcome.id]


def test_an_sdk_that_gave_up_may_ask_again(served: Served, sdk: Sdk, customer: str) -> None:
    call = Call(served.billing, bill(customer))
    # Node's sends again once, whatever it is told, when a connection was closed under it.
    with broken_line(served.url, answers_lost=2) as line:
        (lost,) = sdk(line, call)
    (found,) = sdk(served.url, call)

    assert lost.error in {"APIConnectionError", "StripeConnectionError"}
    assert (found.error, found.replayed) == (None, True)
    assert charged(served, customer) == [found.id]
