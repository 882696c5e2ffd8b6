"""The suite that users run, run against good and bad deployments; and that it moves no money."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.agent.conftest import Says, StubProxy, refusal, serve_stub
from tests.proxy.peer import self_signed
from tests.proxy_processes import ProxyProcesses, Running, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CAPS = ("--daily-cap", "100.00usd", "--expires", "30d")
WITHOUT_PYTEST = """
import runpy, sys
sys.modules["pytest"] = None
runpy.run_module("kb_mcp.enforcement", run_name="__main__")
"""
BREAKS = {
    "a Stripe key beside the agent": "test_no_stripe_key_is_in_the_environment_of_the_agent",
    "no cap": "test_the_billing_key_has_a_cap",
    "no expiry": "test_both_keys_expire",
    "one key for both": "test_each_role_has_a_key_of_its_own",
    "a billing key that reads": "test_the_billing_key_cannot_read_charges",
    "an audit key that charges": "test_the_audit_key_cannot_charge",
    "a key nobody issued": "test_both_keys_are_vault_keys_that_the_proxy_serves",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcesses]:
    with cluster(tmp_path_factory.mktemp("town")) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(place: ProxyProcesses) -> Running:
    return place.start_proxy()


@pytest.fixture(scope="module")
def keys(place: ProxyProcesses) -> dict[str, str]:
    options = {
        "billing": ("--role", "billing", *CAPS),
        "audit": ("--role", "audit", "--expires", "30d"),
        "capless": ("--role", "billing", "--expires", "30d"),
        "endless": ("--role", "billing", "--daily-cap", "100.00usd"),
        "reading": ("--role", "billing-with-status", *CAPS),
    }
    return {name: place.issue(*given) for name, given in options.items()}


def enforce(
    proxy: Running | StubProxy, billing: str, audit: str, folder: Path, **more: str
) -> tuple[int, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("KEYBRAKE", "PYTEST"))}  # noqa: TID251 - for a child process
    settings = {
        "KEYBRAKE_PROXY_URL": proxy.url,
        "KEYBRAKE_VAULT_KEY_BILLING": billing,
        "KEYBRAKE_VAULT_KEY_AUDIT": audit,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--pyargs", "kb_mcp.enforcement", "-rf", "--showlocals"],
        env=kept | settings | more,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def charges_seen(place: ProxyProcesses) -> list[str]:
    state = httpx.get(f"{place.sandbox.url}/_sandbox/state", trust_env=False).json()
    return [each["path"] for each in state["requests"] if each["method"] == "POST"]


def test_a_good_deployment_passes(
    place: ProxyProcesses, proxy: Running, keys: dict[str, str], tmp_path: Path
) -> None:
    code, told = enforce(proxy, keys["billing"], keys["audit"], tmp_path)

    assert code == 0, told
    assert " passed" in told
    assert "skipped" not in told
    assert charges_seen(place) == []


@pytest.mark.parametrize("what", BREAKS)
def test_a_bad_deployment_fails_at_its_check_and_still_moves_nothing(
    what: str, place: ProxyProcesses, proxy: Running, keys: dict[str, str], tmp_path: Path
) -> None:
    billing, audit, more = keys["billing"], keys["audit"], {}
    match what:
        case "a Stripe key beside the agent":
            more = {"STRIPE_SECRET_KEY": "sk_test_abc123"}
        case "no cap":
            billing = keys["capless"]
        case "no expiry":
            billing = keys["endless"]
        case "one key for both":
            audit = billing
        case "a billing key that reads":
            billing = keys["reading"]
        case "an audit key that charges":
            audit = keys["capless"]
        case "a key nobody issued":
            billing = "vk_test_nobody_something"
        case _:
            pytest.fail(what)

    code, told = enforce(proxy, billing, audit, tmp_path, **more)

    assert code == 1, told
    assert f"::{BREAKS[what]}" in told
    assert charges_seen(place) == []
    assert billing not in told
    assert audit not in told


@pytest.mark.parametrize(("named", "code"), [("peer.pem", 0), ("none.pem", 1)])
def test_a_deployment_behind_a_private_authority_is_checked_where_it_is_trusted(
    named: str, code: int, tmp_path: Path
) -> None:
    with serve_stub(self_signed(tmp_path)) as proxy:
        (tmp_path / "none.pem").write_text("no certificates")
        proxy.on("GET /keybrake/v1/key", Says(401, refusal("vault_key_unknown")))
        denied = refusal("vault_key_not_authorized")
        proxy.on("GET /stripe/v1/charges/ch_EnforcementProbe", Says(403, denied))
        only = "-k 'knows_no_key or go_through_the_proxy'"

        ended, told = enforce(
            *(proxy, "vk_test_a_b", "vk_test_c_d", tmp_path),
            KEYBRAKE_CA_FILE=str(tmp_path / named),
            PYTEST_ADDOPTS=only,
        )

    assert ended == code, told
    assert ("2 passed" in told) == (code == 0)
    assert ("KEYBRAKE_CA_FILE holds no certificates" in told) == (code == 1)


def test_a_deployment_that_is_not_set_fails_and_is_not_skipped(tmp_path: Path) -> None:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("KEYBRAKE", "PYTEST"))}  # noqa: TID251 - for a child process
    done = subprocess.run(
        [sys.executable, "-m", "kb_mcp.enforcement", "-q"],
        env=kept,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "KEYBRAKE_PROXY_URL is not set" in done.stdout


def test_without_pytest_it_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "kb-mcp-billing[enforcement]" in done.stderr
