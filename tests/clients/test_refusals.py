"""Every refusal reaches the users of an SDK as the exception class that they catch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.errors.refusals import Code
from tests.clients.conftest import Served
from tests.clients.refused import CASES, CLASSES, NOT_THROUGH_AN_SDK, Case
from tests.clients.stripe_sdks import Call, Outcome, Sdk, node_sdk, python_sdk
from tests.proxy_processes import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ELSEWHERE = {
    *("vault_key_unknown", "vault_key_revoked", "vault_key_expired"),
    *("upstream_unreachable", "draining", "idempotency_key_in_use"),
}


@pytest.fixture(params=["python", "node"])
def sdk(request: pytest.FixtureRequest, tmp_path: Path) -> Sdk:
    if request.param == "python":
        return python_sdk
    return node_sdk(request.getfixturevalue("npm"), tmp_path)


@pytest.fixture
def both(npm: str, tmp_path: Path) -> Sdk:
    """Return both SDKs as one, which makes a call with each at the same time."""
    node = node_sdk(npm, tmp_path)

    def call(url: str, *calls: Call) -> list[Outcome]:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(sdk, url, *calls) for sdk in (python_sdk, node)]
            return [outcome for each in asked for outcome in each.result()]

    return call


@pytest.fixture(scope="module")
def key_of(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], str]:
    """Return a function that gives the key of a case; those with a policy get their own."""
    folder = tmp_path_factory.mktemp("policies")

    def key(case: Case) -> str:
        if case.role == "audit" or not case.policy:
            return served.audit if case.role == "audit" else served.billing
        file = folder / "policy.json"
        policy = {"version": 1, "role": "test", "allow": ["POST /v1/charges"], **case.policy}
        file.write_text(json.dumps(policy), encoding="utf-8")
        return served.cluster.issue("--policy", str(file))

    return key


def bill(customer: str, **changes: Any) -> dict[str, Any]:
    metadata = {"billing_period": "2026-11"}
    made = {"customer": customer, "amount": 2900, "currency": "usd", "metadata": metadata}
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_every_refusal_is_provoked_or_accounted_for() -> None:
    provoked = {case.code for case in CASES} - {"card_declined"}

    assert provoked | ELSEWHERE | NOT_THROUGH_AN_SDK.keys() == {code.value for code in Code}
    assert not provoked & NOT_THROUGH_AN_SDK.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_refusal_is_raised_as_its_class(
    case: Case, served: Served, sdk: Sdk, key_of: Callable[[Case], str]
) -> None:
    python = sdk is python_sdk
    customer = f"cus_{case.code.replace('_', '')}{'P' if python else 'N'}"
    key = key_of(case)
    params = {} if case.raw else bill(customer, **case.params)
    calls = [Call(key, bill(customer, **each), case.options) for each in case.before]
    if case.fault:
        served.cluster.fault(case.fault)

    *_, outcome = sdk(served.url, *calls, Call(key, params, case.options, raw=case.raw))

    wanted = case.classes[0 if python else 1]
    assert outcome == Outcome(error=wanted, code=case.code, status=case.status)


@pytest.mark.parametrize("why", ["unknown", "revoked", "expired"])
def test_a_bad_key_is_an_authentication_error(why: str, both: Sdk, tmp_path: Path) -> None:
    with cluster(tmp_path) as place:
        proxy = place.start_proxy()
        issue = ("--role", "billing", "--uncapped", "--expires", "1h", "--json")
        issued = json.loads(place.command("keys", "issue", *issue).stdout)
        key = issued["token"]
        match why:
            case "unknown":
                key = "vk_test_nobody_knows"
            case "revoked":
                place.command("keys", "revoke", issued["id"])
            case "expired":
                place.turn_clock(2 * 60 * 60)
            case _:
                pytest.fail(why)
        outcomes = both(proxy.url, Call(key, bill("cus_Nobody")))

    assert outcomes == raised(401, f"vault_key_{why}")


def test_an_unreachable_stripe_is_an_api_error(both: Sdk, tmp_path: Path) -> None:
    with cluster(tmp_path) as place:
        proxy, key = place.start_proxy(), place.issue()
        place.sandbox.kill()
        outcomes = both(proxy.url, Call(key, bill("cus_Far")))

    assert outcomes == raised(502, "upstream_unreachable")


def test_a_bill_that_is_being_sent_and_a_drain_are_api_errors(both: Sdk, tmp_path: Path) -> None:
    with cluster(tmp_path) as place:
        proxy, key = place.start_proxy(), place.issue()
        place.fault("delay", seconds=15)  # beyond the ten seconds that a second caller waits
        call = Call(key, bill("cus_Slow"))
        first = threading.Thread(target=python_sdk, args=(proxy.url, call))
        first.start()
        while not place.charges():
            assert first.is_alive()
        waited = both(proxy.url, call)
        proxy.process.terminate()
        while not any(line.startswith("Draining") for line in proxy.said):
            assert proxy.process.poll() is None
        late = both(proxy.url, Call(key, bill("cus_Late")))
        first.join()

    assert waited == raised(409, "idempotency_key_in_use")
    assert late == raised(503, "draining")


def raised(status: int, code: str) -> list[Outcome]:
    """Return what both SDKs make of a refusal."""
    return [Outcome(error=each, code=code, status=status) for each in CLASSES[status]]
