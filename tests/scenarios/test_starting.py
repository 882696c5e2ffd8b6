"""Starting on a store that belongs to something else: refused, with exit code 2 and one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.sandbox.app import Sandbox
from kb_mcp.serving.machine import host_ms, random_name
from tests.cli.machine import Machine
from tests.in_process_proxy import InProcessProxy
from tests.sandbox.driver import start_in_thread


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"KEYBRAKE_ACCOUNT": "acct_2"}, "belongs to account"),
        ({"KEYBRAKE_STRIPE_KEY": "rk_test_Abc"}, "in sandbox mode"),
        ({"KEYBRAKE_STRIPE_KEY": "rk_live_Abc"}, "in sandbox mode"),
        ({"KEYBRAKE_ACCOUNT_DAILY_CAP": "9.00usd"}, "ceilings"),
        ({"KEYBRAKE_UPSTREAM_TIMEOUT": "9"}, "upstream_timeout_ms"),
        ({"KEYBRAKE_RECOVERY_GRACE": "900"}, "recovery_grace_ms"),
    ],
)
def test_a_store_of_another_account_or_with_other_settings_is_not_opened(
    tmp_path: Path, environ: dict[str, str], told: str
) -> None:
    machine = Machine(tmp_path)
    token = machine.token()
    machine.serve_once()
    refused = machine.run("keys", "list", code=2, **environ)
    assert told in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 2  # the error, and a hint
    assert machine.charge(token, "2026-11").status_code == 200


@pytest.mark.parametrize("name", ["KEYBRAKE_ACCOUNT", "KEYBRAKE_UPSTREAM_TIMEOUT"])
def test_nor_is_it_served(tmp_path: Path, name: str) -> None:
    machine = Machine(tmp_path)
    machine.serve_once()
    ports = ("--port", "0", "--admin-port", "0", "--sandbox-port", "0")
    done = subprocess.run(
        [sys.executable, "-m", "kb_mcp", "up", *ports],
        env=machine.process_env | {name: "9"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    *_, error, hint = done.stderr.strip().splitlines()
    assert (error[:17], hint[:5]) == ("Error: the store ", "Hint:")


def test_a_key_of_another_stripe_account_is_refused_at_the_start(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "s.db", clock=host_ms, new_id=random_name)
    with start_in_thread(sandbox) as url:
        environ = {"KEYBRAKE_STRIPE_KEY": "rk_test_Abc", "KEYBRAKE_STRIPE_API_BASE": url}
        with InProcessProxy(tmp_path, **environ) as in_process:
            in_process.run(
                in_process.proxy.start()
            )  # binds the store to the account that Stripe names
            key = in_process.issue()
            assert in_process.charge(key, period="2026-11").status_code == 200
            with pytest.raises(BindingError, match="belongs to Stripe account"):
                in_process.proxy.store.bind_account("acct_another", "test")
            with pytest.raises(BindingError, match="KEYBRAKE_ACCOUNT is acct_9"):
                in_process.proxy.store.bind_account("acct_another", "acct_9")
