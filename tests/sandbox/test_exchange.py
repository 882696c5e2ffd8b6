"""API keys and idempotency, to the letter of Stripe's documentation."""

from __future__ import annotations

import asyncio
import base64
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.sandbox.driver import AUTHORIZED, CHARGE, KEY, START_MS, Driver, driving, new_sandbox


def basic(user: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer rk_test_sandbox"},
        {"authorization": "Bearer sk_test_abc"},
        basic("rk_test_sandbox"),
    ],
)
def test_test_keys_are_accepted_as_bearer_and_basic(
    sandbox: Driver, headers: dict[str, str]
) -> None:
    assert sandbox.send("GET", "/v1/account", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (
            {"authorization": "Bearer rk_live_abcdefgh1234"},
            "Invalid API Key provided: rk_live_********1234",
        ),
        (basic("sk_live_abcdefgh1234"), "Invalid API Key provided: sk_live_********1234"),
        (
            {"authorization": "Bearer vk_test_id_secretsecret"},
            "Invalid API Key provided: vk_test_***********cret",
        ),
        ({"authorization": "Bearer rk_test_"}, "Invalid API Key provided: rk_test_****"),
        ({"authorization": "Basic !"}, None),
        ({}, None),
    ],
)
def test_other_keys_are_refused_and_masked(
    sandbox: Driver, headers: dict[str, str], message: str | None
) -> None:
    response = sandbox.send("POST", "/v1/charges", CHARGE, headers=headers, key="k")
    error = response.json()["error"]
    assert response.status_code == 401
    assert error["type"] == "invalid_request_error"
    assert error["message"] == message or "did not provide an API key" in error["message"]
    assert sandbox.state()["charges"] == []
    assert sandbox.charge("k").status_code == 200


def test_every_response_carries_its_headers(sandbox: Driver) -> None:
    sandbox.advance(3600)
    headers = {"authorization": f"Bearer {KEY}", "stripe-version": "2026-10-28.endive"}
    for response in (
        sandbox.send("GET", "/v1/charges", headers=headers),
        sandbox.send("GET", "/v1/nowhere", headers=headers),
        sandbox.send("GET", "/_sandbox/state", headers=headers),
    ):
        assert response.headers["request-id"].startswith("req_")
        assert response.headers["content-type"] == "application/json"
        date = parsedate_to_datetime(response.headers["date"])
        assert date.timestamp() == START_MS // 1000 + 3600
    for sent, version in ((headers, "2026-10-28.endive"), (AUTHORIZED, "2026-05-27.dahlia")):
        response = sandbox.send("GET", "/v1/charges", headers=sent)
        assert response.headers["stripe-version"] == version


def test_a_replay_returns_the_first_body(sandbox: Driver) -> None:
    first, second = sandbox.charge("k"), sandbox.charge("k")
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "k"
    assert second.headers["original-request"] == first.headers["request-id"]
    assert second.headers["request-id"] != first.headers["request-id"]
    assert len(sandbox.state()["charges"]) == 1


def test_a_replay_does_not_mind_the_order_of_parameters_or_another_api_key(
    sandbox: Driver,
) -> None:
    first = sandbox.charge("k")
    turned = dict(reversed(CHARGE.items()))
    second = sandbox.post("/v1/charges", turned, key="k", headers=basic("sk_test_other"))
    assert second.json() == first.json()


def test_without_a_key_every_request_charges(sandbox: Driver) -> None:
    sandbox.charge()
    sandbox.charge()
    assert len(sandbox.state()["charges"]) == 2


def test_another_body_under_the_same_key_is_an_idempotency_error(sandbox: Driver) -> None:
    sandbox.charge("k")
    response = sandbox.charge("k", amount="3000")
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "idempotency_error")
    assert error["message"] == (
        "Keys for idempotent requests can only be used with the same parameters they were first "
        "used with. Try using a key other than 'k' if you meant to execute a different request."
    )
    assert len(sandbox.state()["charges"]) == 1


def test_another_endpoint_under_the_same_key_is_an_idempotency_error(sandbox: Driver) -> None:
    sandbox.charge("k")
    response = sandbox.post("/v1/payment_intents", CHARGE, key="k")
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "idempotency_error")
    assert "('/v1/payment_intents' vs '/v1/charges')" in error["message"]
    assert sandbox.state()["payment_intents"] == []


def test_a_decline_is_stored_and_leaves_one_failed_charge(sandbox: Driver) -> None:
    first = sandbox.charge("k", customer="cus_Declined1")
    second = sandbox.charge("k", customer="cus_Declined1")
    assert (first.status_code, second.status_code) == (402, 402)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert len(sandbox.state()["charges"]) == 1


def test_a_validation_error_is_not_stored(sandbox: Driver) -> None:
    assert sandbox.charge("k", amount="49").status_code == 400
    assert sandbox.charge("k").status_code == 200


@pytest.mark.parametrize("kind", ["400", "401", "403", "409", "429"])
def test_a_refusal_before_execution_is_not_stored(sandbox: Driver, kind: str) -> None:
    sandbox.fault(kind)
    refused = sandbox.charge("k")
    assert refused.status_code == int(kind)
    assert sandbox.state()["charges"] == []
    charged = sandbox.charge("k")
    assert charged.status_code == 200
    assert "idempotent-replayed" not in charged.headers


def test_a_key_means_nothing_on_get(sandbox: Driver) -> None:
    sandbox.send("GET", "/v1/charges", key="k")
    sandbox.charge()
    listed = sandbox.send("GET", "/v1/charges", key="k")
    assert len(listed.json()["data"]) == 1
    assert "idempotent-replayed" not in listed.headers


def test_a_key_may_be_255_characters_long_and_no_longer(sandbox: Driver) -> None:
    assert sandbox.charge("k" * 256).status_code == 400
    assert sandbox.charge("k" * 255).status_code == 200


def test_a_key_is_forgotten_after_24_hours_of_the_sandboxs_clock(sandbox: Driver) -> None:
    first = sandbox.charge("k").json()
    sandbox.advance(24 * 3600 - 1)
    assert sandbox.charge("k").json()["id"] == first["id"]
    sandbox.advance(1)
    assert sandbox.charge("k", amount="3000").json()["id"] != first["id"]
    assert len(sandbox.state()["charges"]) == 2


def test_a_key_under_way_is_in_use_and_then_replays(sandbox: Driver) -> None:
    sandbox.fault("delay", seconds=600)

    async def overlap() -> tuple[httpx.Response, httpx.Response]:
        slow = asyncio.create_task(sandbox.asend("POST", "/v1/charges", CHARGE, key="k"))
        await sandbox.until_charged()
        second = await sandbox.asend("POST", "/v1/charges", CHARGE, key="k")
        sandbox.app.release()
        return await slow, second

    first, second = asyncio.run(overlap())
    error = second.json()["error"]
    assert (second.status_code, error["code"]) == (409, "idempotency_key_in_use")
    assert error["type"] == "invalid_request_error"
    assert first.status_code == 200
    assert sandbox.charge("k").content == first.content
    assert len(sandbox.state()["charges"]) == 1


def test_a_key_whose_caller_was_cancelled_is_free_again(sandbox: Driver) -> None:
    sandbox.fault("delay", seconds=600)

    async def give_up() -> None:
        slow = asyncio.create_task(sandbox.asend("POST", "/v1/charges", CHARGE, key="k"))
        await sandbox.until_charged()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    asyncio.run(give_up())
    assert sandbox.charge("k").headers["idempotent-replayed"] == "true"


def test_sandboxes_that_share_a_file_share_objects_keys_and_clock(tmp_path: Path) -> None:
    state = tmp_path / "sandbox.db"
    with driving(new_sandbox(state, "a")) as one, driving(new_sandbox(state, "b")) as two:
        first = one.charge("k")
        assert two.charge("k").content == first.content
        assert two.get(f"/v1/charges/{first.json()['id']}") == first.json()
        one.advance(24 * 3600)
        assert two.charge("k").json()["id"] != first.json()["id"]
    with driving(new_sandbox(state, "c")) as later:
        assert later.state()["counts"]["charges"] == 2
        assert later.state()["offset_ms"] == 24 * 3600 * 1000


def test_private_sandboxes_share_nothing() -> None:
    with driving(new_sandbox()) as one, driving(new_sandbox()) as two:
        one.charge()
        assert two.state()["charges"] == []
