"""What docs/identities.md shows is what happens, with the provider of these tests in its place."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.installs import environ
from tests.clients.page import printed
from tests.identity.conftest import Door, Provider
from tests.identity.test_clients import door

__all__ = ["door"]

PAGE = (Path(__file__).parents[2] / "docs" / "identities.md").read_text(encoding="utf-8")
BOT = {"client_id": "support-bot", "token_endpoint_auth_method": "client_secret_post"}


@pytest.fixture
def shown(door: Door, provider: Provider) -> Callable[[str], str]:
    """Return what gives the block of a mark, with addresses that are there."""

    def block(mark: str) -> str:
        (found,) = re.findall(rf"<!-- {mark} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
        here = str(found).replace("https://idp.example.com", provider.url)
        return here.replace("https://billing.example.com", door.url.removesuffix("/mcp"))

    return block


def test_the_steps_of_the_page_lead_to_a_charge(
    door: Door, provider: Provider, shown: Callable[[str], str]
) -> None:
    if not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("the page's commands need curl and jq")
    secret = provider.http.post("/register", json=BOT).json()["client_secret"]
    issue, grant = (shlex.split(line)[1:] for line in shown("set up").splitlines())
    key = json.loads(door.processes.command(*issue, "--json").stdout)
    door.processes.command(*grant[:-1], key["id"])
    done = subprocess.run(
        ["bash", "-c", shown("runs")],
        env=environ() | {"CLIENT_SECRET": secret, "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )

    assert printed(done.stdout) == printed(shown("prints"))
    assert door.subjects() == {f"{provider.url} support-bot"}


def test_doctor_says_what_the_page_shows(door: Door, shown: Callable[[str], str]) -> None:
    told = door.processes.command("doctor").stdout

    lines = shown("doctor").replace("1 stand", "2 stand").splitlines()
    assert set(lines) <= set(told.splitlines())
