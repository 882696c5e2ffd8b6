"""Takes every block of docs/attach/ as it stands: connects with it, and charges once."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Served
from tests.clients.connect import use
from tests.clients.installs import environ, node
from tests.clients.page import Block, blocks, entry_of, expanded, printed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
# `said` is what a person saw; tests/examples runs what has the mark `example`.
MARKS = {"config", "shell", "claude", "runs", "server", "enforcement", "example", "said"}
HOME = "/home/me/.local/share/kb-mcp/keybrake"


def bill(block: Block) -> dict[str, object]:
    return {"customer_id": block.customer, "amount_cents": 2900, "billing_period": "2026-11"}


def charged(served: Served, customer: str) -> list[str]:
    return [each["id"] for each in served.cluster.charges() if each["customer"] == customer]


def settings(served: Served) -> dict[str, str]:
    return {
        "KEYBRAKE_PROXY_URL": served.url,
        "KEYBRAKE_VAULT_KEY": served.both,
        "KEYBRAKE_VAULT_KEY_BILLING": served.billing,
        "KEYBRAKE_VAULT_KEY_AUDIT": served.audit,
    }


def numbered(block: Block) -> str:
    return f"{block.page}-{block.number}"


def test_every_block_has_a_mark_and_so_a_test() -> None:
    assert {block.mark for block in blocks()} == MARKS
    assert {block.where for block in blocks("runs")} == {
        *("here", "node", "strands", "langchain", "openai"),
    }
    shown = {block.page for block in blocks() if block.prints or block.mark == "said"}
    assert shown == {block.page for block in blocks()}, "a page without a transcript"


@pytest.mark.parametrize("block", blocks("config"), ids=numbered)
def test_a_configuration_connects_and_charges(block: Block, served: Served, tmp_path: Path) -> None:
    files = {}
    for role, token in (("billing", served.billing), ("audit", served.audit)):
        files[f"{HOME}.{role}.key"] = tmp_path / f"{role}.key"
        files[f"{HOME}.{role}.key"].write_text(token, encoding="utf-8")
    inputs = {"billing-key": served.billing, "vault-key": served.both}
    entry = entry_of(expanded(block.text, served.url, settings(served) | inputs, files))

    tools, (first, again) = use(entry, bill(block), bill(block))

    asked_for_one = "input:billing-key" in block.text
    assert tools == (["charge"] if asked_for_one else ["charge", "charge_status"])
    assert (first["already_charged"], again["already_charged"]) == (False, True)
    assert charged(served, block.customer) == [first["charge_id"]]


@pytest.mark.parametrize("variable", ["KEYBRAKE_VAULT_KEY_BILLING", "KEYBRAKE_PROXY_URL"])
def test_a_variable_that_was_left_unexpanded_is_refused_at_start(
    variable: str, served: Served
) -> None:
    left = {**settings(served), variable: f"${{{variable}}}"}
    left.pop("KEYBRAKE_VAULT_KEY")
    done = subprocess.run(
        ["kb-mcp", "mcp"],
        env=environ() | left,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert variable in done.stderr


@pytest.mark.parametrize("block", blocks("runs"), ids=numbered)
def test_a_program_charges_once(
    block: Block, served: Served, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    match block.where:
        case "node":
            folder = Path(request.getfixturevalue("npm"))
            file, command = folder / "doors.mjs", [node()]
        case "here":
            file, command = tmp_path / "doors.py", [sys.executable]
        case _:
            python = request.getfixturevalue(block.where)
            file, command = tmp_path / "doors.py", [python]
    file.write_text(block.own(), encoding="utf-8")
    variables = settings(served)
    if block.where == "here":
        # Settings that are none of ours would be refused as misspelt.
        del variables["KEYBRAKE_VAULT_KEY"]

    done = subprocess.run(
        [*command, str(file)],
        env=environ() | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    (charge,) = charged(served, block.customer)
    assert charge in done.stdout
    if block.where in {"strands", "langchain", "openai"}:
        assert "['charge', 'charge_status']" in done.stdout
    if block.prints:
        assert printed(done.stdout) == printed(block.prints)


def test_the_line_for_claude_code_says_what_the_block_above_it_says(served: Served) -> None:
    (block,) = blocks("claude")
    words = shlex.split(block.text)
    assert words[:3] == ["claude", "mcp", "add"]
    options = dict(itertools.pairwise(words))
    name, _, value = options["--header"].partition(": ")
    header = {name: value.replace("$KEYBRAKE_VAULT_KEY", served.both)}
    url = next(word for word in words if word.startswith("http://"))

    tools, _ = use({"url": url.replace("http://127.0.0.1:8787", served.url), "headers": header})

    assert options["--transport"] == "http"
    assert tools == ["charge", "charge_status"]


@pytest.mark.parametrize("block", blocks("shell"), ids=numbered)
def test_commands_do_what_they_are_there_for(block: Block, served: Served) -> None:
    for line in block.text.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "kb-mcp"
        assert served.cluster.command(*arguments).stdout


def test_the_server_for_agentcore_runtime_answers_as_the_platform_asks(served: Served) -> None:
    (block,) = blocks("server")
    _, script, *options = shlex.split(block.text)
    assert options == ["--host", "0.0.0.0", "--port", "8000"]
    variables = settings(served)
    del variables["KEYBRAKE_VAULT_KEY"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), "--host", "127.0.0.1", "--port", "0"],
        env=environ() | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        # The platform adds a session of its own, and a Host that is none of ours.
        headers = {"Mcp-Session-Id": "platform-session-1", "Host": "runtime.example"}
        tools, (first, again) = use({"url": url, "headers": headers}, bill(block), bill(block))
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()

    assert tools == ["charge", "charge_status"]
    assert (first["already_charged"], again["already_charged"]) == (False, True)
    assert charged(served, block.customer) == [first["charge_id"]]


def test_the_check_of_a_deployment_is_the_one_that_there_is() -> None:
    (block,) = blocks("enforcement")

    assert shlex.split(block.text) == ["pytest", "--pyargs", "kb_mcp.enforcement"]
