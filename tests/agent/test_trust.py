"""Whose certificates a door believes, and what it says when a proxy is not reached."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from kb_mcp.agent.calls import Answered, Unavailable, call_tool
from kb_mcp.agent.client.line import CallContext
from kb_mcp.environment import SettingsError
from kb_mcp.settings import load_settings
from kb_mcp.wiring.agent import connect_billing, open_billing
from tests.agent.conftest import BILLING_KEY, Says, StubProxy, charge, serve_stub
from tests.proxy.peer import self_signed

BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}


def bill_at(url: str, **environ: str) -> Answered | Unavailable:
    """Charge once through the proxy at `url`, with the settings that `environ` adds."""
    named = {"KEYBRAKE_PROXY_URL": url, "KEYBRAKE_VAULT_KEY_BILLING": BILLING_KEY}
    billing = connect_billing(load_settings({**named, **environ}))
    try:
        answer = call_tool(billing, "charge", BILL, CallContext())
    finally:
        billing.close()
    assert isinstance(answer, Answered | Unavailable)
    return answer


def serves_charges(proxy: StubProxy) -> StubProxy:
    proxy.on("POST /stripe/v1/charges", Says(200, charge()))
    return proxy


@pytest.mark.parametrize("variable", ["KEYBRAKE_CA_FILE", "SSL_CERT_FILE"])
def test_a_private_authority_is_trusted_where_it_is_named(variable: str, tmp_path: Path) -> None:
    with serve_stub(self_signed(tmp_path)) as proxy:
        answer = bill_at(serves_charges(proxy).url, **{variable: str(tmp_path / "peer.pem")})

    assert isinstance(answer, Answered)
    assert answer.result.model_dump()["charge_id"] == "ch_1"


def test_a_private_authority_in_a_folder_is_trusted(tmp_path: Path) -> None:
    context = self_signed(tmp_path)
    # The name that OpenSSL looks for: the hash of the subject (openssl x509 -hash).
    (tmp_path / "88d0bdcb.0").symlink_to(tmp_path / "peer.pem")
    with serve_stub(context) as proxy:
        answer = bill_at(serves_charges(proxy).url, SSL_CERT_DIR=str(tmp_path))

    assert isinstance(answer, Answered)


@pytest.mark.parametrize("named", [{}, {"SSL_CERT_FILE": "/no/such"}, {"SSL_CERT_DIR": "/no"}])
def test_a_certificate_that_is_not_trusted_is_said_and_nothing_is_sent(
    named: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve_stub(self_signed(tmp_path)) as proxy:
        answer = bill_at(serves_charges(proxy).url, **named)

    assert isinstance(answer, Unavailable)
    assert "cannot be reached: certificate" in answer.message
    assert "Nothing was sent." in answer.message
    assert proxy.seen == []
    assert f"The proxy at {proxy.url} cannot be reached: certificate: " in caplog.text
    assert "KEYBRAKE_CA_FILE" in caplog.text
    assert BILLING_KEY not in caplog.text


def test_a_name_that_a_certificate_does_not_hold_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = self_signed(tmp_path)
    with serve_stub(context) as proxy:
        url = proxy.url.replace("127.0.0.1", "localhost")
        answer = bill_at(url, KEYBRAKE_CA_FILE=str(tmp_path / "peer.pem"))

    assert isinstance(answer, Unavailable)
    assert "certificate" in answer.message
    assert "localhost" in caplog.text


def test_a_port_that_speaks_no_tls_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with serve_stub() as proxy:
        answer = bill_at(proxy.url.replace("http:", "https:"))

    assert isinstance(answer, Unavailable)
    assert "cannot be reached: TLS" in answer.message
    assert proxy.seen == []
    assert "TLS" in caplog.text


def test_the_connections_of_a_caller_with_a_loop_end_with_its_block() -> None:
    def connected(port: int) -> int:
        found = psutil.Process().net_connections("tcp4")
        return sum(bool(each.raddr) and each.raddr.port == port for each in found)

    async def bill(proxy: StubProxy, port: int) -> tuple[int, int]:
        named = {"KEYBRAKE_PROXY_URL": proxy.url, "KEYBRAKE_VAULT_KEY_BILLING": BILLING_KEY}
        async with open_billing(load_settings(named)) as billing:
            call_tool(billing, "charge", BILL, CallContext())
            before = connected(port)
        return before, connected(port)

    with serve_stub() as proxy:
        port = int(serves_charges(proxy).url.rpartition(":")[2])
        assert asyncio.run(bill(proxy, port)) == (1, 0)


def test_a_port_where_nobody_listens_is_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        answer = bill_at(f"http://127.0.0.1:{free.getsockname()[1]}")

    assert isinstance(answer, Unavailable)
    assert "cannot be reached: connection refused" in answer.message


def test_a_file_without_certificates_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificates")
    with pytest.raises(SettingsError, match="KEYBRAKE_CA_FILE holds no certificates"):
        bill_at("https://127.0.0.1:1", KEYBRAKE_CA_FILE=str(tmp_path / "ca.pem"))
