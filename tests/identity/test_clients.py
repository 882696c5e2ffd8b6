"""Clients that know OAuth alone find their way from the address of /mcp to a charge."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import httpx2
import pytest
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from tests.clients.connect import use
from tests.identity.conftest import Door, Provider, opened
from tests.months import lately

BACK = "http://127.0.0.1:9/callback"
BILL = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": lately("2026-11")}


@pytest.fixture
def door(provider: Provider, tmp_path: Path) -> Iterator[Door]:
    with opened(provider, tmp_path) as door:
        yield door


@dataclass
class Person:
    """Somebody at a browser: follows the authorization address, and brings the code back."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None
    landed: dict[str, list[str]] = field(default_factory=dict)

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info

    async def go_to(self, address: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as browser:
            answer = await browser.get(address)
        self.landed = parse_qs(urlsplit(answer.headers["location"]).query)

    async def come_back(self) -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=self.landed["code"][0], state=self.landed["state"][0])


def charge(door: Door, auth: httpx2.Auth) -> Any:
    """Connect with `auth` alone, and charge; return the tools and what the charge said."""

    async def work() -> Any:
        async with httpx2.AsyncClient(auth=auth, timeout=60, trust_env=False) as http:
            transport = streamable_http_client(door.url, http_client=http)
            async with Client(transport) as client:
                listed = await client.list_tools()
                charged = await client.call_tool("charge", BILL)
        return [tool.name for tool in listed.tools], charged.structured_content

    return asyncio.run(work())


def test_the_python_sdk_finds_the_provider_registers_and_charges_for_a_person(
    door: Door, provider: Provider
) -> None:
    person = Person()
    metadata = OAuthClientMetadata(client_name="a test", redirect_uris=[AnyUrl(BACK)])
    auth = OAuthClientProvider(door.url, metadata, person, person.go_to, person.come_back)

    tools, charged = charge(door, auth)

    assert tools == ["charge", "charge_status"]
    assert charged["status"] == "succeeded"
    assert len(door.processes.charges()) == 1
    rows = json.loads(door.processes.command("audit", "list", "--json").stdout)
    assert f"{provider.url} person-1" in {row["subject"] for row in rows}


def test_the_python_sdk_charges_with_the_credentials_of_a_machine(
    door: Door, provider: Provider
) -> None:
    registered = provider.http.post(
        "/register",
        json={"client_id": "machine", "token_endpoint_auth_method": "client_secret_post"},
    ).json()
    auth = ClientCredentialsOAuthProvider(
        door.url,
        Person(),
        "machine",
        registered["client_secret"],
        token_endpoint_auth_method="client_secret_post",
        issuer=provider.url,
    )

    tools, charged = charge(door, auth)

    assert tools == ["charge", "charge_status"]
    assert charged["status"] == "succeeded"


def test_a_door_presents_the_token_that_a_platform_writes_into_a_file(
    door: Door, provider: Provider, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(provider.sign(sub="person-1", aud=door.url) + "\n")
    held = {
        "KEYBRAKE_PROXY_URL": door.url.removesuffix("/mcp"),
        "KEYBRAKE_VAULT_KEY_FILE": str(file),
    }

    entry = {"command": sys.executable, "args": ["-m", "kb_mcp", "mcp"], "env": held}
    tools, (charged,) = use(entry, BILL)

    assert tools == ["charge", "charge_status"]
    assert (charged["status"], charged["livemode"]) == ("succeeded", False)
    assert door.subjects() == {f"{provider.url} person-1"}


def test_what_the_proxy_says_of_itself_leads_from_a_challenge_to_the_issuer(
    door: Door, provider: Provider
) -> None:
    origin = door.url.removesuffix("/mcp")
    with httpx.Client(trust_env=False) as client:
        challenge = client.post(door.url, json={}).headers["www-authenticate"]
        address = challenge.partition('resource_metadata="')[2].rstrip('"')
        led = client.get(address)
        others = [
            client.get(f"{origin}/.well-known/{name}")
            for name in ("oauth-protected-resource", "oauth-protected-resource/mcp")
        ]
        unknown = client.get(f"{origin}/.well-known/oauth-authorization-server")
        wrong = client.post(f"{origin}/.well-known/oauth-protected-resource")

    assert address == f"{origin}/.well-known/oauth-protected-resource/mcp"
    assert f"Tokens: of {provider.url} for {door.url}\n" in door.processes.running[-1].said
    assert "error=" not in challenge
    assert led.json()["resource"] == door.url
    assert led.json()["authorization_servers"] == [provider.url]
    assert led.json()["scopes_supported"] == ["charge", "charge_status", "refund"]
    assert [each.json() for each in others] == [led.json()] * 2
    assert (unknown.status_code, wrong.status_code) == (404, 405)


def test_a_token_for_one_resource_is_none_at_another(door: Door, provider: Provider) -> None:
    other = provider.sign(sub="person-1")  # of the address that other tests use
    good = provider.sign(sub="person-1", aud=door.url)
    with httpx.Client(trust_env=False, timeout=60) as client:
        answers = [
            client.post(
                door.url.replace("/mcp", "/v1/charges"),
                data={"customer": "cus_A1", "amount": "2900", "currency": "usd"},
                headers={"Authorization": f"Bearer {token}"},
            )
            for token in (other, good)
        ]

    assert [each.status_code for each in answers] == [401, 200]
