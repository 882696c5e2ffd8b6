"""What a Stripe SDK relies on at the wall: how a key comes, and when a repeat may help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.in_process_proxy import InProcessProxy, error_of

FORM = {"customer": "cus_A1", "amount": "2900", "currency": "usd",
        "metadata[billing_period]": "2026-11"}  # fmt: skip


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessProxy]:
    folder: Path = tmp_path_factory.mktemp("house")
    with InProcessProxy(folder) as built:
        built.begin_day()
        yield built


def test_a_vault_key_may_come_as_the_user_of_basic(in_process: InProcessProxy) -> None:
    key = in_process.issue()

    bearer = in_process.charge(key, customer="cus_A1", period="2026-11")
    basic = in_process.client.post("/v1/charges", data=FORM, auth=httpx.BasicAuth(key.token, ""))

    assert (bearer.status_code, basic.status_code) == (200, 200)
    assert basic.json()["id"] == bearer.json()["id"]


REFUSED = {
    "a bad key": (401, "vault_key_unknown"),
    "an endpoint": (403, "vault_key_not_authorized"),
    "a cap": (403, "spend_cap_exceeded"),
    "a parameter": (403, "parameter_not_allowed"),
    "an amount": (400, "parameter_invalid"),
    "a path": (404, "path_unknown"),
    "a method": (405, "method_not_allowed"),
    "a size": (413, "body_too_large"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_has_stripes_shape_and_tells_an_sdk_not_to_repeat_it(
    in_process: InProcessProxy, what: str
) -> None:
    key = in_process.issue(daily={"usd": 1000})
    send = in_process.client.request
    method, path, form, token = "POST", "/v1/charges", dict(FORM), key.token
    match what:
        case "a bad key":
            token = "vk_test_nobody_nothing"
        case "an endpoint":
            method, path, form = "GET", "/v1/charges/ch_1", {}
        case "a parameter":
            form["transfer_data[destination]"] = "acct_1"
        case "an amount":
            form["amount"] = "29.5"
        case "a path":
            path = "/v1/nothing"
        case "a method":
            method = "PUT"
        case "a size":
            form["description"] = "x" * 70_000
        case _:
            form["metadata[billing_period]"] = "2026-10"

    answer = send(method, path, data=form, headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, error_of(answer)) == REFUSED[what], answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert answer.headers["stripe-should-retry"] == "false"
    assert answer.headers["request-id"].startswith("req_")
