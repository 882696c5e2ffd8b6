"""A provider in a process of its own, and a proxy that accepts its tokens."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.operators.actions.grants import NewGrant, add_grant
from kb_mcp.proxy.ledger.records import Grant
from kb_mcp.serving.machine import random_bytes
from tests.in_process_proxy import InProcessProxy, Issued
from tests.postgres import database, server
from tests.proxy_processes import ProxyProcesses, cluster

__all__ = ["database", "server"]

PROVIDER = Path(__file__).with_name("provider.py")
MCP_META: dict[str, object] = {"io.modelcontextprotocol/clientCapabilities": {}}
RESOURCE = "http://127.0.0.1/mcp"


class Provider:
    """The provider's process, steered over HTTP."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, at the same address as before if it was stopped."""
        command = [sys.executable, str(PROVIDER), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> None:
        """End it, and free its address."""
        self.http.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def do(self, what: str, **body: Any) -> Any:
        """Have it rotate, sign, lie, or tell what it was asked."""
        answer = self.http.post(f"/_test/{what}", json=body)
        answer.raise_for_status()
        return answer.json()

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Return the claims of a good token; a claim that is None is left out."""
        now = int(time.time())  # noqa: TID251 - a provider's time is the host's
        claims = {
            "iss": self.url,
            "sub": "agent-7",
            "aud": RESOURCE,
            "iat": now,
            "exp": now + 300,
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign(self, header: dict[str, Any] | None = None, **changed: Any) -> str:
        """Sign a token whose claims are good but for what is changed."""
        token = self.do("sign", claims=self.claims(**changed), header=header or {})["token"]
        return str(token)


@dataclass
class Door:
    """The address of /mcp of a running proxy, and the processes behind it."""

    url: str
    processes: ProxyProcesses

    def charges(self, customer: str) -> int:
        """Return how many charges of `customer` the upstream has."""
        return sum(each["customer"] == customer for each in self.processes.charges())

    def subjects(self) -> set[str]:
        """Return for whom the audit says that something was done."""
        rows = json.loads(self.processes.command("audit", "list", "--json").stdout)
        return {row["subject"] for row in rows if row["kind"] == "outcome"}


@contextmanager
def opened(provider: Provider, folder: Path) -> Iterator[Door]:
    """Run a proxy whose /mcp takes the tokens of persons and of one machine at `provider`."""
    # A token is meant for one address, so that it has to be known before the proxy starts.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"
    issuers = {"KEYBRAKE_OAUTH_ISSUERS": provider.url, "KEYBRAKE_OAUTH_AUDIENCE": url}
    with cluster(folder, **issuers) as processes:
        issued = ("keys", "issue", "--role", "billing-with-status", "--daily-cap", "1000.00usd")
        key = json.loads(processes.command(*issued, "--json").stdout)
        for match in ("sub=person-*", "sub=machine"):
            given = ("--issuer", provider.url, "--match", match, "--key", key["id"])
            processes.command("grants", "add", *given, "--label", "a test's", "--json")
        processes.start_proxy(port=port)
        yield Door(url, processes)


@pytest.fixture(scope="session")
def one_provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.stop()


@pytest.fixture
def provider(one_provider: Provider) -> Provider:
    """Return the provider, truthful and with new keys."""
    one_provider.do("lie")
    one_provider.do("rotate")
    return one_provider


@pytest.fixture
def store() -> dict[str, str]:
    """Return the settings of the store: the SQLite file in the test's own folder."""
    return {}


@pytest.fixture
def in_process(
    provider: Provider, tmp_path: Path, store: dict[str, str]
) -> Iterator[InProcessProxy]:
    environ = {"KEYBRAKE_OAUTH_ISSUERS": provider.url, "KEYBRAKE_OAUTH_AUDIENCE": RESOURCE}
    with InProcessProxy(tmp_path, **environ, **store) as proxy:
        yield proxy


@pytest.fixture
def key(in_process: InProcessProxy) -> Issued:
    return in_process.issue("billing-with-status", daily={"usd": 10_000})


def grant(in_process: InProcessProxy, key: Issued, issuer: str, *matches: str) -> Grant:
    """Let identities of `issuer` stand for `key`."""
    wanted = NewGrant(issuer, matches, key.id, None)
    ledger = in_process.proxy.store.ledger
    return in_process.run(add_grant(ledger, wanted, random_bytes, "test"))


def bearer(token: str) -> Issued:
    """Return `token` as what a test charges with."""
    return Issued("", token)
