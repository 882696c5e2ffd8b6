"""The sandbox behind a real socket: drops, real SDKs, several processes on one file."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from kb_mcp.sandbox.app import running
from tests.sandbox.driver import (
    AUTHORIZED,
    CHARGE,
    KEY,
    Driver,
    driving,
    new_sandbox,
    start_in_thread,
)

PARAMS: Any = {"amount": 2900, "currency": "usd", "customer": "cus_Abc123"}


@pytest.fixture
def url(sandbox: Driver) -> Iterator[str]:
    with start_in_thread(sandbox.app) as address:
        yield address


def client_of(url: str) -> stripe.StripeClient:
    return stripe.StripeClient(KEY, base_addresses={"api": url}, max_network_retries=0)


@pytest.mark.parametrize(("kind", "charges"), [("drop_before", 0), ("drop_after", 1)])
def test_a_dropped_connection_ends_without_a_byte(
    sandbox: Driver, url: str, kind: str, charges: int
) -> None:
    sandbox.fault(kind)
    host, port = url.removeprefix("http://").split(":")
    body = "amount=2900&currency=usd&customer=cus_Abc123"
    request = (
        f"POST /v1/charges HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request.encode())
        try:
            received = connection.recv(1)
        except ConnectionResetError:
            received = b""
    assert received == b""
    assert len(sandbox.state()["charges"]) == charges


def test_a_client_sees_a_drop_as_a_network_error_and_the_next_request_is_served(
    sandbox: Driver, url: str
) -> None:
    sandbox.fault("drop_after")
    with httpx.Client(base_url=url, headers=AUTHORIZED, trust_env=False) as client:
        client.get("/v1/charges")
        with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
            client.post("/v1/charges", data=CHARGE)
        assert len(client.get("/v1/charges").json()["data"]) == 1


def test_the_date_is_the_sandboxs_alone(sandbox: Driver, url: str) -> None:
    sandbox.advance(7200)
    response = httpx.get(f"{url}/v1/account", headers=AUTHORIZED, trust_env=False)
    assert len(response.headers.get_list("date")) == 1
    assert response.headers["date"] == sandbox.send("GET", "/v1/account").headers["date"]
    assert "server" not in response.headers


def test_stopping_ends_a_delay_and_answers(sandbox: Driver) -> None:
    sandbox.fault("delay", seconds=600)
    with ThreadPoolExecutor(1) as pool:
        with start_in_thread(sandbox.app) as url:
            slow = pool.submit(
                httpx.post, f"{url}/v1/charges", data=CHARGE, headers=AUTHORIZED, trust_env=False
            )
            while not sandbox.state()["charges"]:
                pass
        assert slow.result().status_code == 200


def test_the_server_runs_inside_a_loop_too(sandbox: Driver) -> None:
    async def visit() -> int:
        async with running(sandbox.app) as url, httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"{url}/v1/account", headers=AUTHORIZED)).status_code

    assert asyncio.run(visit()) == 200


def test_a_taken_port_is_an_error_at_once(sandbox: Driver, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"), start_in_thread(sandbox.app, port=port):
        pytest.fail("two servers on one port")


def test_many_at_once_under_one_key_make_one_charge(tmp_path: Path) -> None:
    state = tmp_path / "sandbox.db"
    with (
        driving(new_sandbox(state, "a")) as one,
        driving(new_sandbox(state, "b")) as two,
        start_in_thread(one.app) as first,
        start_in_thread(two.app) as second,
        httpx.Client(headers=AUTHORIZED | {"idempotency-key": "k"}, trust_env=False) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        one.fault("delay", times=1, seconds=0.05)
        gate = threading.Barrier(16)

        def charge(url: str) -> httpx.Response:
            gate.wait()
            return client.post(f"{url}/v1/charges", data=CHARGE)

        answers = list(pool.map(charge, [first, second] * 8))
        charged = [answer for answer in answers if answer.status_code == 200]
        assert {answer.status_code for answer in answers} <= {200, 409}
        assert len({answer.content for answer in charged}) == 1
        assert one.state()["counts"]["charges"] == 1


def test_a_killed_process_leaves_its_charge_and_no_lock(tmp_path: Path) -> None:
    state = tmp_path / "sandbox.db"
    program = (
        "import sys, itertools\n"
        "from pathlib import Path\n"
        "from kb_mcp.sandbox.app import Sandbox, serve\n"
        "numbers = itertools.count()\n"
        "app = Sandbox(Path(sys.argv[1]), clock=lambda: 1_790_000_000_000,\n"
        "    new_id=lambda: f'killed{next(numbers)}')\n"
        "serve(app, '127.0.0.1', 0, on_bound=lambda url: print(url, flush=True))\n"
    )
    with (
        driving(new_sandbox(state)) as survivor,
        subprocess.Popen(
            [sys.executable, "-c", program, str(state)], stdout=subprocess.PIPE, text=True
        ) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        survivor.fault("delay", seconds=600)
        headers = AUTHORIZED | {"idempotency-key": "k"}
        slow = pool.submit(
            httpx.post, f"{url}/v1/charges", data=CHARGE, headers=headers, trust_env=False
        )
        while not survivor.state()["charges"]:
            pass
        assert survivor.charge("k").status_code == 409
        process.kill()
        process.wait()
        assert isinstance(slow.exception(), httpx.TransportError)
        replayed = survivor.charge("k")
        assert replayed.status_code == 200
        assert replayed.headers["idempotent-replayed"] == "true"
        assert len(survivor.state()["charges"]) == 1


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
def test_serving_ends_with_sigterm(tmp_path: Path) -> None:
    program = (
        "from kb_mcp.sandbox.app import Sandbox, serve\n"
        "app = Sandbox(None, clock=lambda: 0, new_id=lambda: 'x')\n"
        "serve(app, '127.0.0.1', 0, on_bound=lambda url: print(url, flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/v1/account", headers=AUTHORIZED, trust_env=False).is_success
        process.terminate()
        process.wait(30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False)


def test_the_stripe_sdk_charges_retrieves_refunds_and_replays(sandbox: Driver, url: str) -> None:
    client = client_of(url)
    charge = client.v1.charges.create(PARAMS, {"idempotency_key": "k"})
    again = client.v1.charges.create(PARAMS, {"idempotency_key": "k"})
    assert (charge.status, charge.amount, again.id) == ("succeeded", 2900, charge.id)
    assert client.v1.charges.retrieve(charge.id).customer == "cus_Abc123"
    refund = client.v1.refunds.create({"charge": charge.id})
    assert (refund.status, refund.amount) == ("succeeded", 2900)
    customer = client.v1.customers.retrieve("cus_Abc123")
    assert customer.invoice_settings is not None
    card: Any = customer.invoice_settings.default_payment_method
    confirmed: Any = {**PARAMS, "payment_method": card, "off_session": True, "confirm": True}
    intent = client.v1.payment_intents.create(confirmed)
    assert intent.status == "succeeded"
    assert len(sandbox.state()["charges"]) == 2


@pytest.mark.parametrize(
    ("changes", "key", "error", "code"),
    [
        ({"customer": "cus_Declined1"}, "a", stripe.CardError, "card_declined"),
        ({"customer": "cus_Missing1"}, "b", stripe.InvalidRequestError, "resource_missing"),
        ({"idempotency_key": "x"}, "c", stripe.InvalidRequestError, "parameter_unknown"),
        ({}, "used", stripe.IdempotencyError, None),
    ],
)
def test_the_stripe_sdk_raises_the_errors_it_has_for_stripe(
    sandbox: Driver,
    url: str,
    changes: dict[str, Any],
    key: str,
    error: type[stripe.StripeError],
    code: str | None,
) -> None:
    sandbox.charge("used", amount="5000")
    params: Any = {**PARAMS, **changes}
    with pytest.raises(error) as raised:
        client_of(url).v1.charges.create(params, {"idempotency_key": key})
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("401", stripe.AuthenticationError),
        ("403", stripe.PermissionError),
        ("409", stripe.APIError),
        ("429", stripe.RateLimitError),
        ("500_after", stripe.APIError),
        ("drop_after", stripe.APIConnectionError),
    ],
)
def test_the_stripe_sdk_raises_the_errors_it_has_for_faults(
    sandbox: Driver, url: str, kind: str, error: type[stripe.StripeError]
) -> None:
    sandbox.fault(kind)
    with pytest.raises(error):
        client_of(url).v1.charges.create(PARAMS)


def test_the_stripe_sdk_pages_through_a_list(sandbox: Driver, url: str) -> None:
    made = [sandbox.charge(amount=str(1000 + n)).json()["id"] for n in range(7)]
    client = client_of(url)
    forwards = client.v1.charges.list({"customer": "cus_Abc123", "limit": 3}).auto_paging_iter()
    assert [charge.id for charge in forwards] == made[::-1]
    backwards = client.v1.charges.list({"limit": 3, "ending_before": made[1]}).auto_paging_iter()
    assert [charge.id for charge in itertools.islice(backwards, 9)] == made[2:]
