"""The addresses that `up` prints are such that a door sends a key there and the guard answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typing_extensions import override

from kb_mcp.agent.calls import Answered, call_tool
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import check_address
from kb_mcp.serving.host_check import client_url, local_url
from kb_mcp.settings import Settings, load_settings
from kb_mcp.wiring.agent import connect_billing
from kb_mcp.wiring.serve import bind
from tests.months import lately
from tests.proxy_processes import cluster

BILL = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": lately("2026-11")}


def settings(*hosts: str, allow_http: bool = False) -> Settings:
    return Settings(database_url="sqlite:////tmp/kb.db", allowed_hosts=hosts, allow_http=allow_http)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")],
)
def test_a_socket_of_this_machine_is_shown_where_it_is_reached(host: str, shown: str) -> None:
    with bind(host, 0) as sock:
        url = f"http://{shown}:{sock.getsockname()[1]}"
        assert (local_url(sock), client_url(sock, settings())) == (url, url)
    check_address(url)


@pytest.mark.parametrize(("alone", "shown"), [(0, "127.0.0.1"), (1, "[::1]")])
def test_every_address_of_both_kinds_is_reached_on_loopback(alone: int, shown: str) -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        sock.bind(("::", 0))
        assert local_url(sock) == f"http://{shown}:{sock.getsockname()[1]}"


class Elsewhere(socket.socket):
    """A socket on an address that this machine need not have."""

    @override
    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.7", 8787)


@pytest.mark.parametrize(
    ("chosen", "url"),
    [
        (settings(), None),
        (settings(allow_http=True), None),
        (settings("billing.example.com"), "https://billing.example.com"),
        (settings("192.0.2.7:8787"), "https://192.0.2.7:8787"),
        (settings("proxy", allow_http=True), "http://proxy:8787"),
        (settings("proxy:80", allow_http=True), "http://proxy:80"),
    ],
    ids=str,
)
def test_beyond_this_machine_only_an_allowed_host_is_given_to_clients(
    chosen: Settings, url: str | None
) -> None:
    with Elsewhere() as sock:
        assert client_url(sock, chosen) == url


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_configuration_that_is_printed_charges(host: str, tmp_path: Path) -> None:
    with cluster(tmp_path) as place:
        running = place.start_proxy("--host", host)
        file = next(line for line in running.said if line.startswith("Keys and settings: "))
        token = Path(file.split(": ")[1].split(" (")[0])
        env = {
            "KEYBRAKE_PROXY_URL": running.url,
            "KEYBRAKE_VAULT_KEY_BILLING_FILE": str(token.with_suffix(".billing.key")),
        }
        billing = connect_billing(load_settings(env))
        answer = call_tool(billing, "charge", BILL, CallContext())
        billing.close()
        assert isinstance(answer, Answered)
        assert answer.result.model_dump()["status"] == "succeeded"
        assert (tmp_path / "ledger.env").read_text().startswith(f"KEYBRAKE_PROXY_URL={running.url}")
