"""The same charge through every door, each started as users start it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kb_mcp import idempotency_key
from tests.clients.installs import environ, node
from tests.proxy_processes import ProxyProcesses, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
USERS = Path(__file__).parent / "users"
BILL = {"amount_cents": 2900, "billing_period": "2026-11"}
DOORS = (
    "mcp_stdio",
    "mcp_http",
    "action_group_api",
    "action_group_function",
    "gateway",
    "converse",
    "stripe_python",
    "stripe_node",
)
# What names one operation rather than another, or says when and for how long.
OPERATION_OWN = {"id", "charge_id", "key_id", "created_at", "updated_at", "customer_id"}
ATTEMPT_OWN = {"object_id", "upstream_key", "first_sent_at", "last_sent_at"}
FACTS = (
    *("kind", "decision", "code", "role", "method", "attempt", "amount"),
    *("currency", "stripe_status"),
)

Charge = Callable[[str], dict[str, Any]]


def command(door: str, npm: str) -> list[str]:
    if door == "stripe_node":
        script = Path(npm) / "stripe_node.mjs"
        shutil.copy(USERS / script.name, script)
        return [node(), str(script)]
    name, _, argument = door.partition("_") if door.startswith("mcp") else (door, "", "")
    module = f"tests.every_door.users.{'mcp_client' if name == 'mcp' else door}"
    return [sys.executable, "-m", module, *filter(None, [argument])]


@contextmanager
def opened(door: str, npm: str, url: str, key: str) -> Iterator[Charge]:
    """Start the user of a door, wait until it is ready, and end it."""
    settings = {
        "KEYBRAKE_PROXY_URL": url,
        "KEYBRAKE_VAULT_KEY_BILLING": key,
        "STRIPE_SECRET_KEY": key,
        "STRIPE_API_BASE": url,
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        command(door, npm),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ() | settings,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def charge(customer: str) -> dict[str, Any]:
        stdin.write(json.dumps(BILL | {"customer_id": customer}) + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    try:
        assert stdout.readline() == "ready\n"
        yield charge
    finally:
        stdin.close()
        process.wait(120)
        stdout.close()


def customer_of(door: str) -> str:
    return f"cus_Every{DOORS.index(door)}"


Rows = list[dict[str, Any]]


def left_behind(place: ProxyProcesses) -> dict[str, tuple[Rows, Rows]]:
    """Return each customer's operations, and the facts of the audit that are about them."""
    operations = json.loads(place.command("operations", "list", "--json").stdout)
    audit = json.loads(place.command("audit", "list", "--json").stdout)
    customers = {each["customer_id"] for each in operations}
    return {
        customer: _of(
            [dict(each) for each in operations if each["customer_id"] == customer],
            [each for each in audit if each["customer_id"] == customer],
        )
        for customer in customers
    }


def _of(operations: Rows, audit: Rows) -> tuple[Rows, Rows]:
    for operation in operations:
        for attempt in operation["attempts"]:
            for name in ATTEMPT_OWN:
                assert attempt.pop(name)
        for name in OPERATION_OWN:
            assert operation.pop(name)
    about = [row for row in audit if row["operation_id"]]
    assert all(row["path"] in {"/v1/charges", "/stripe/v1/charges"} for row in about)
    assert all(row["hash"] and row["request_id"] for row in about)
    return operations, [{name: row[name] for name in FACTS} for row in about]


@pytest.fixture(scope="module")
def by_door(
    npm: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, Any, Any, Any]]:
    """Charge a customer of its own through each door, twice; return what is left of it."""
    with cluster(tmp_path_factory.mktemp("doors")) as place:
        proxy = place.start_proxy()

        def use(door: str) -> list[Any]:
            with opened(door, npm, proxy.url, place.issue()) as charge:
                return [charge(customer_of(door)), charge(customer_of(door))]

        with ThreadPoolExecutor(2) as pool:
            answers = dict(zip(DOORS, pool.map(use, DOORS), strict=True))
        charged, left = place.charges(), left_behind(place)
    return {
        door: (
            [each["id"] for each in charged if each["customer"] == customer_of(door)],
            answers[door],
            *left[customer_of(door)],
        )
        for door in DOORS
    }


@pytest.mark.parametrize("door", DOORS)
def test_a_door_charges_once_and_says_so(door: str, by_door: dict[str, Any]) -> None:
    charges, answers, _, _ = by_door[door]

    assert len(charges) == 1
    assert [each["charge_id"] for each in answers] == charges * 2
    assert [each["status"] for each in answers] == ["succeeded"] * 2
    if not door.startswith("stripe"):
        assert [each["already_charged"] for each in answers] == [False, True]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_leaves_the_same_operation_and_audit(door: str, by_door: dict[str, Any]) -> None:
    _, _, operations, audit = by_door[door]

    assert [each["idempotency_key"] for each in operations] == [
        idempotency_key(customer_of(door), 2900, "2026-11")
    ]
    first, audit_of_first = by_door["mcp_stdio"][2:]
    named = {"idempotency_key": first[0]["idempotency_key"]}
    assert ([each | named for each in operations], audit) == (first, audit_of_first)
    assert [row["kind"] for row in audit] == ["decision", "outcome", "decision"]
    assert [row["decision"] for row in audit][0::2] == ["proceed", "replay"]


def test_all_doors_at_once_make_one_charge(npm: str, tmp_path: Path) -> None:
    with cluster(tmp_path) as place, ExitStack() as stack:
        proxy, key = place.start_proxy(), place.issue()
        doors = [stack.enter_context(opened(door, npm, proxy.url, key)) for door in DOORS]
        # The first send is under way until the others have come: they join it.
        place.fault("delay", seconds=2)
        with ThreadPoolExecutor(len(doors)) as pool:
            answers = list(pool.map(lambda charge: charge("cus_All"), doors))
        ((operations, audit),) = left_behind(place).values()
        charges = [each["id"] for each in place.charges()]

    assert len(charges) == len(operations) == 1
    assert {each["charge_id"] for each in answers} == set(charges)
    assert {each["status"] for each in answers} == {"succeeded"}
    told = [each["already_charged"] for each in answers if "already_charged" in each]
    assert told.count(False) <= 1
    assert [row["decision"] for row in audit].count("proceed") == 1
