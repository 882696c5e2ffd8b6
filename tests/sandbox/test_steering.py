"""The clock, the faults, the state and the reset, driven in process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from kb_mcp.sandbox.steering import ConnectionDropped
from tests.sandbox.driver import CHARGE, START_MS, Driver


def test_the_clock_advances_and_says_so(sandbox: Driver) -> None:
    assert sandbox.get("/_sandbox/clock") == {"now_ms": START_MS, "offset_ms": 0}
    sandbox.advance(60)
    answer = sandbox.post("/_sandbox/clock", json={"advance_seconds": 40}).json()
    assert answer == {"now_ms": START_MS + 100_000, "offset_ms": 100_000}
    assert sandbox.charge().json()["created"] == START_MS // 1000 + 100


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("clock", {"advance_seconds": -1}),
        ("clock", {"advance_seconds": "60"}),
        ("clock", {"advance_seconds": True}),
        ("clock", []),
        ("faults", {"match": "POST /v1/charges", "kind": "429"}),
        ("faults", [{"match": "POST /v1/charges", "kind": "explode"}]),
        ("faults", [{"match": "POST /v1/charges"}]),
        ("faults", [{"match": "charges", "kind": "429"}]),
        ("faults", [{"match": "POST /v1/charges", "kind": "429", "times": 0}]),
        ("faults", [{"match": "POST /v1/charges", "kind": "delay", "seconds": -1}]),
        ("faults", [{"match": "POST /v1/charges", "kind": "429", "count": 1}]),
        ("faults", [{"match": "POST /v1/charges", "kind": "429"}, "x"]),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    sandbox: Driver, path: str, sent: object
) -> None:
    response = sandbox.post(f"/_sandbox/{path}", json=sent)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    state = sandbox.state()
    assert (state["offset_ms"], state["faults"]) == (0, [])


def test_unknown_steering_is_not_found(sandbox: Driver) -> None:
    assert sandbox.send("GET", "/_sandbox/nothing").status_code == 404
    assert sandbox.send("DELETE", "/_sandbox/state").status_code == 404


@pytest.mark.parametrize(
    ("match", "method", "path", "hit"),
    [
        ("POST /v1/charges", "POST", "/v1/charges", True),
        ("POST /v1/charges", "GET", "/v1/charges", False),
        ("POST /v1/charges", "POST", "/v1/refunds", False),
        ("GET /v1/charges/*", "GET", "/v1/charges/ch_1", True),
        ("GET /v1/charges/*", "GET", "/v1/charges", False),
        ("* /v1/charges*", "GET", "/v1/charges", True),
        ("*", "GET", "/v1/account", True),
    ],
)
def test_a_fault_hits_what_it_matches(
    sandbox: Driver, match: str, method: str, path: str, hit: bool
) -> None:
    sandbox.fault("429", match)
    assert (sandbox.send(method, path).status_code == 429) is hit


def test_faults_are_taken_in_order_and_as_often_as_they_say(sandbox: Driver) -> None:
    sandbox.fault("429", times=2)
    sandbox.fault("409")
    assert sandbox.state()["faults"][0] == {
        "match": "POST /v1/charges",
        "kind": "429",
        "times": 2,
        "seconds": 0,
    }
    assert [sandbox.charge().status_code for _ in range(4)] == [429, 429, 409, 200]
    assert sandbox.state()["faults"] == []


@pytest.mark.parametrize(
    ("kind", "kind_of_error", "code"),
    [
        ("429", "invalid_request_error", "rate_limit"),
        ("409", "invalid_request_error", "idempotency_key_in_use"),
        ("400", "invalid_request_error", "parameter_invalid"),
        ("500_before", "api_error", None),
        ("402", "card_error", "card_declined"),
    ],
)
def test_injected_errors_have_stripes_shape(
    sandbox: Driver, kind: str, kind_of_error: str, code: str | None
) -> None:
    sandbox.fault(kind)
    response = sandbox.charge()
    assert response.status_code == int(kind[:3])
    error = response.json()["error"]
    assert (error["type"], error.get("code")) == (kind_of_error, code)


def test_an_injected_403_names_the_masked_key_and_the_account(sandbox: Driver) -> None:
    sandbox.fault("403")
    message = sandbox.charge().json()["error"]["message"]
    assert "'rk_test_****dbox'" in message
    assert sandbox.get("/v1/account")["id"] in message
    assert "rk_test_sandbox" not in message


def test_drop_before_executes_nothing(sandbox: Driver) -> None:
    sandbox.fault("drop_before")
    with pytest.raises(ConnectionDropped):
        sandbox.charge("k")
    assert sandbox.state()["charges"] == []
    assert "idempotent-replayed" not in sandbox.charge("k").headers
    assert len(sandbox.state()["charges"]) == 1


def test_drop_after_has_charged_and_stored_the_answer(sandbox: Driver) -> None:
    sandbox.fault("drop_after")
    with pytest.raises(ConnectionDropped):
        sandbox.charge("k")
    [charge] = sandbox.state()["charges"]
    retried = sandbox.charge("k")
    assert retried.json() == charge
    assert retried.headers["idempotent-replayed"] == "true"
    assert len(sandbox.state()["charges"]) == 1


def test_drop_after_without_a_key_charges_again_on_retry(sandbox: Driver) -> None:
    sandbox.fault("drop_after")
    with pytest.raises(ConnectionDropped):
        sandbox.charge()
    sandbox.charge()
    assert len(sandbox.state()["charges"]) == 2


@pytest.mark.parametrize(("kind", "charges"), [("500_before", 0), ("500_after", 1)])
def test_a_500_is_stored_whether_or_not_it_charged(
    sandbox: Driver, kind: str, charges: int
) -> None:
    sandbox.fault(kind)
    first, second = sandbox.charge("k"), sandbox.charge("k")
    assert (first.status_code, second.status_code) == (500, 500)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(sandbox.state()["charges"]) == charges


def test_a_replay_leaves_faults_of_execution_alone(sandbox: Driver) -> None:
    first = sandbox.charge("k")
    sandbox.fault("500_after")
    assert sandbox.charge("k").content == first.content
    assert sandbox.charge("other").status_code == 500


def test_an_injected_decline_leaves_a_failed_charge_and_is_stored(sandbox: Driver) -> None:
    sandbox.fault("402")
    first, second = sandbox.charge("k"), sandbox.charge("k")
    assert (first.status_code, second.status_code) == (402, 402)
    [charge] = sandbox.state()["charges"]
    assert charge["status"] == "failed"


def test_an_injected_decline_where_no_card_is_asked_changes_nothing(sandbox: Driver) -> None:
    sandbox.fault("402", "POST /v1/customers")
    assert sandbox.post("/v1/customers", {"email": "a@example.com"}).status_code == 402
    assert sandbox.state()["customers"] == []


def test_a_delayed_charge_is_in_the_list_before_it_is_answered(sandbox: Driver) -> None:
    sandbox.fault("delay", seconds=600)

    async def look() -> None:
        slow = asyncio.create_task(sandbox.asend("POST", "/v1/charges", CHARGE))
        await sandbox.until_charged()
        assert not slow.done()
        sandbox.app.release()
        assert (await slow).status_code == 200

    asyncio.run(look())


def test_a_short_delay_ends_by_itself(sandbox: Driver) -> None:
    sandbox.fault("delay", seconds=0.01)
    assert sandbox.charge("k").status_code == 200
    assert sandbox.charge("k").headers["idempotent-replayed"] == "true"


def test_the_state_tells_objects_and_requests(sandbox: Driver) -> None:
    sandbox.charge("k")
    sandbox.send("GET", "/v1/charges")
    sandbox.fault("drop_before")
    with pytest.raises(ConnectionDropped):
        sandbox.charge("other")
    state = sandbox.state()
    assert state["counts"]["charges"] == len(state["charges"]) == 1
    assert (state["counts"]["customers"], state["counts"]["refunds"]) == (1, 0)
    assert state["request_count"] == 3
    assert state["requests"] == [
        entry("POST", status=200, key="k", customer="cus_Abc123"),
        entry("GET", status=200),
        entry("POST", status=None, key="other", customer="cus_Abc123"),
    ]


def test_refused_requests_count_too(sandbox: Driver) -> None:
    sandbox.send("POST", "/v1/charges", CHARGE, headers={})
    sandbox.send("GET", "/v1/nowhere")
    state = sandbox.state()
    assert state["request_count"] == 2
    assert [request["status"] for request in state["requests"]] == [401, 404]


def test_reset_forgets_everything(sandbox: Driver) -> None:
    sandbox.charge("k")
    sandbox.advance(60)
    sandbox.fault("429")
    assert sandbox.post("/_sandbox/reset").status_code == 200
    state = sandbox.state()
    assert (state["charges"], state["faults"], state["requests"]) == ([], [], [])
    assert (state["offset_ms"], state["request_count"]) == (0, 0)
    assert sandbox.charge("k", amount="3000").status_code == 200


def entry(
    method: str, *, status: int | None, key: str | None = None, customer: str | None = None
) -> Mapping[str, object]:
    return {
        "method": method,
        "path": "/v1/charges",
        "idempotency_key": key,
        "customer": customer,
        "status": status,
    }
