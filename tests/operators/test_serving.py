"""Operators and a real `kb-mcp up`: logs, alerts from the file, streams, and a quick end."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import httpx
import pytest

from tests.operators.operators_app import TOKEN, csrf_of
from tests.proxy_processes import ProxyProcesses, Running, charge, cluster

ADMIN = {"KEYBRAKE_ADMIN_TOKEN": TOKEN}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def operated(place: ProxyProcesses, *options: str) -> tuple[Running, str]:
    """Start `up` with an operators' listener; return it and that listener's address."""
    port = free_port()
    running = place.start_proxy("--admin-port", str(port), *options)
    return running, f"http://127.0.0.1:{port}"


def test_a_followed_audit_ends_with_the_process_and_holds_it_up_no_longer(tmp_path: Path) -> None:
    with cluster(tmp_path, **ADMIN) as place:
        running, url = operated(place, "--log-format", "json")
        token = place.issue()
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as browser:
            csrf = csrf_of(browser.get("/login"))
            browser.post("/login", data={"token": TOKEN, "csrf": csrf})
            with browser.stream("GET", "/audit/stream") as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                lines = stream.iter_lines()
                assert next(lines) == "retry: 3000"
                charge(running.url, token, period="2026-11")
                shown = next(line for line in lines if line.startswith("data: "))
                row = json.loads(shown.removeprefix("data: "))
                assert (row["kind"], row["customer_id"]) == ("decision", "cus_A1")
                running.process.terminate()
                for _ in lines:
                    pass
        assert running.process.wait(30) == 0
        running.stop()


def test_without_a_session_nothing_is_followed(tmp_path: Path) -> None:
    with cluster(tmp_path, **ADMIN) as place:
        _, url = operated(place)
        answer = httpx.get(f"{url}/audit/stream", trust_env=False)
        assert (answer.status_code, answer.content) == (204, b"")


def test_the_file_beside_the_store_sets_who_is_told(tmp_path: Path) -> None:
    out = tmp_path / "told"
    script = f'cat > "{out}.$$" && mv "{out}.$$" "{out}"'
    text = f"version = 1\n[[command]]\nrun = {json.dumps(['/bin/sh', '-c', script])}\n"
    (tmp_path / "ledger.db.alerts.toml").write_text(text)
    with cluster(tmp_path, **ADMIN) as place:
        running, url = operated(place)
        token = place.issue("--role", "billing", "--daily-cap", "29.00usd")
        charge(running.url, token, period="2026-11")
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as browser:
            csrf = csrf_of(browser.get("/login"))
            browser.post("/login", data={"token": TOKEN, "csrf": csrf})
            with browser.stream("GET", "/audit/stream") as stream:
                for line in stream.iter_lines():
                    if '"decision":"deliver"' in line:
                        break
        assert json.loads(out.read_text())["kind"] == "cap_100"
        assert running.stop() == 0


def test_an_alerts_file_that_cannot_be_meant_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "ledger.db.alerts.toml").write_text("version = 1\ncolour = 1\n")
    with cluster(tmp_path, **ADMIN) as place:
        done = place.command("up", "--port", "0", "--admin-port", "0", check=False)
    assert done.returncode == 2
    assert "ledger.db.alerts.toml" in done.stderr
    assert "colour" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["ops.example.com", "127.0.0.1.example.com"])
def test_a_name_that_was_rebound_to_this_machine_is_not_answered(tmp_path: Path, host: str) -> None:
    with cluster(tmp_path, **ADMIN) as place:
        _, url = operated(place)
        for path in ("/", "/login", "/metrics", "/admin/v1/keys"):
            headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
            answer = httpx.get(url + path, headers=headers, trust_env=False)
            assert (answer.status_code, "set-cookie" in answer.headers) == (421, False)


def test_the_command_prints_no_operator_token(tmp_path: Path) -> None:
    with cluster(tmp_path, **ADMIN) as place:
        running, _ = operated(place)
        assert not re.search(TOKEN, "".join(running.said))
