"""A browser before the operators' listener: Debian's Chromium, the real server, a real store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.serving.host_check import guard_hosts
from kb_mcp.serving.listener import listen
from kb_mcp.serving.machine import new_id
from kb_mcp.wiring.serve import bind
from tests.in_process_proxy import InProcessProxy
from tests.operators.operators_app import TOKEN, OperatorsApp

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",  # a container's root may not make namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP rebound.example 127.0.0.1",  # a name that came to mean this machine
]


@dataclass
class StoreAdmin:
    """An operators' listener on a port of its own, and the proxy behind it."""

    in_process: InProcessProxy
    operators_app: OperatorsApp
    url: str
    faults: list[str] = field(default_factory=list)  # what the browser complained of

    def enter(self, page: Any, path: str = "/", token: str = TOKEN) -> None:
        """Log in by the form, as a person does."""
        page.goto(f"{self.url}/login")
        page.get_by_label("Operator's token").fill(token)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{self.url}/")
        if path != "/":
            page.goto(self.url + path)


# Not for the session: while Playwright runs, no other test of this thread may use asyncio.run.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def serving(in_process: InProcessProxy) -> Iterator[StoreAdmin]:
    """Serve the operators of a house on a port of its own."""
    operators_app = OperatorsApp(in_process)
    sock = bind("127.0.0.1", 0)
    guard = guard_hosts(operators_app.app, in_process.settings.allowed_hosts)
    server = listen(guard, note=lambda _: None, new_id=new_id)
    running = asyncio.run_coroutine_threadsafe(server.serve(sockets=[sock]), in_process.loop)
    yield StoreAdmin(in_process, operators_app, f"http://127.0.0.1:{sock.getsockname()[1]}")
    operators_app.stopping = True
    server.should_exit = True
    running.result(30)


@pytest.fixture
def store_admin(tmp_path: Path) -> Iterator[StoreAdmin]:
    with InProcessProxy(tmp_path) as in_process, serving(in_process) as made:
        yield made


@pytest.fixture
def page(chromium: Any, store_admin: StoreAdmin) -> Iterator[Any]:
    context = chromium.new_context()
    made = context.new_page()
    made.set_default_timeout(20_000)
    made.on("pageerror", lambda error: store_admin.faults.append(str(error)))
    made.on("console", lambda said: _note(store_admin, said.type, said.text))
    yield made
    context.close()
    assert store_admin.faults == []


def _note(store_admin: StoreAdmin, kind: str, text: str) -> None:
    # An answer that refuses is for the test to judge.
    if kind == "error" and "responded with a status" not in text:
        store_admin.faults.append(text)
