"""MCP over stdin and stdout starts without what only a proxy, or a charge, needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HELLO: list[dict[str, Any]] = [
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]
KEYS = {
    "KEYBRAKE_PROXY_URL": "http://127.0.0.1:9",  # nobody is asked before a tool is called
    "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_billing",
    "KEYBRAKE_VAULT_KEY_AUDIT": "vk_test_audit",
}
# Beside a proxy that runs elsewhere: wing B, its store, its listener, and the line to it.
NEEDLESS = (
    *("kb_mcp.proxy", "kb_mcp.sandbox", "kb_mcp.demo", "kb_mcp.cli.keys", "kb_mcp.cli.opening"),
    *("kb_mcp.wiring.proxy", "kb_mcp.wiring.serve", "kb_mcp.wiring.stores"),
    *("sqlite3", "sqlite_utils", "psycopg", "pyreqwest", "jinja2", "uvloop"),
    *("httpx", "stripe", "rich"),
)
RUN = "from kb_mcp.cli import main; main(['mcp'])"
CODE = (
    "import atexit, sys\n"
    "from kb_mcp.cli import main\n"
    "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    "main(['mcp'])\n"
)


def ask(process: subprocess.Popen[str], message: dict[str, Any]) -> Any:
    """Send one message; a request is answered before the next one, as clients do it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline()) if "id" in message else None


ONE_KEY = {
    "KEYBRAKE_PROXY_URL": "http://127.0.0.1:9",
    "KEYBRAKE_VAULT_KEY": "vk_test_one",
}


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process
    return inherited | (settings or KEYS)


def start(code: str = RUN, *more: str, **given: Any) -> subprocess.Popen[str]:
    """Start `code` in a process of its own, with `more` arguments, its streams as pipes."""
    return start_command([sys.executable, "-c", code, *more], **given)


def start_command(command: list[str], **given: Any) -> subprocess.Popen[str]:
    """Start `command`, its streams as pipes."""
    pipe = subprocess.PIPE
    given = {"env": environment(), **given}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **given)


def test_a_server_that_lists_its_tools_has_imported_no_more_than_it_needs() -> None:
    with start(CODE) as process:
        answers = [ask(process, message) for message in HELLO]
        _, told = process.communicate()

    listed = answers[-1]["result"]["tools"]
    assert [tool["name"] for tool in listed] == ["charge", "charge_status"]
    imported = set(told.split())
    assert "mcp.server" in imported
    assert imported & set(NEEDLESS) == set()


# As an import that takes long: it waits until the test has its greeting.
SLOW = (
    "import sys\n"
    "from kb_mcp.cli import main\n"
    "class Slow:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'mcp':\n"
    "            sys.stderr.write('importing\\n')\n"
    "            sys.stderr.flush()\n"
    "            import os\n"
    "            os.read(int(sys.argv[1]), 1)\n"
    "sys.meta_path.insert(0, Slow())\n"
    "main(['mcp'])\n"
)


def test_a_client_is_greeted_before_the_sdk_is_imported() -> None:
    waiting, go = os.pipe()

    with start(SLOW, str(waiting), pass_fds=(waiting,)) as process:
        greeting = ask(process, HELLO[0])
        os.write(go, b"x")
        listed = [ask(process, message) for message in HELLO[1:]][-1]
        process.communicate()

    assert greeting["result"]["protocolVersion"] == "2025-06-18"
    assert [tool["name"] for tool in listed["result"]["tools"]] == ["charge", "charge_status"]
    os.close(waiting)
    os.close(go)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_server_that_waits_for_its_client(number: signal.Signals) -> None:
    with start() as process:
        for message in HELLO:
            ask(process, message)

        process.send_signal(number)
        # Its stdin stays open: nothing but the signal ends it.
        code = process.wait(60)
        assert process.stderr is not None
        told = process.stderr.read()

    assert (code, told) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_it_without_a_trace(number: signal.Signals) -> None:
    waiting, go = os.pipe()

    with start(SLOW, str(waiting), pass_fds=(waiting,)) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "importing\n"
        process.send_signal(number)
        os.write(go, b"x")
        code = process.wait(60)
        told = process.stderr.read()

    assert (code, told) == (128 + number, "")
    os.close(waiting)
    os.close(go)


def test_as_process_1_it_ends_on_sigterm() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces")
    pid = "import os, sys; sys.stderr.write(f'{os.getpid()}\\n'); sys.stderr.flush()\n"
    code = f"{pid}{RUN}"

    with start_command([*unshare, sys.executable, "-c", code]) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "1\n"
        for message in HELLO:
            ask(process, message)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)

        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("descriptor", "name"), [(0, "stdin"), (1, "stdout")])
def test_a_closed_stream_is_said_in_a_line(descriptor: int, name: str) -> None:
    close = f"import os; os.close({descriptor}); os.execv(sys.executable, argv)"
    code = f"import sys; argv = [sys.executable, '-c', {RUN!r}]; {close}"

    with start(code) as process:
        _, told = process.communicate()

    assert process.returncode == 2
    assert told.splitlines()[0].endswith(f"{name} is closed")
    assert "Traceback" not in told


def test_a_client_that_no_longer_reads_ends_it_in_a_line() -> None:
    with start() as process:
        for message in HELLO:
            ask(process, message)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(json.dumps(HELLO[2]) + "\n")
        process.stdin.flush()

        code = process.wait(60)
        told = process.stderr.read()

    assert code == 0
    assert told == "stdout cannot be written: Broken pipe\n"


def test_with_one_key_listing_is_an_error_while_the_proxy_cannot_be_asked() -> None:
    with start(env=environment(**ONE_KEY)) as process:
        listed = [ask(process, message) for message in HELLO][-1]
        process.communicate()

    assert listed["error"]["code"] == -32603
    assert "cannot be reached" in listed["error"]["message"]


def test_one_key_is_not_used_where_a_key_of_a_tool_is_set() -> None:
    keys = {**ONE_KEY, "KEYBRAKE_VAULT_KEY_AUDIT": "vk_test_audit"}

    with start(env=environment(**keys)) as process:
        listed = [ask(process, message) for message in HELLO][-1]
        process.communicate()

    assert [tool["name"] for tool in listed["result"]["tools"]] == ["charge_status"]


def test_a_server_with_a_proxy_of_its_own_ends_without_a_word(tmp_path: Path) -> None:
    settings = {
        "KEYBRAKE_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
        "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_billing",
        "XDG_DATA_HOME": str(tmp_path),
    }
    with start(env=environment(**settings)) as process:
        ask(process, HELLO[0])
        _, told = process.communicate()

    assert process.returncode == 0
    assert "Traceback" not in told


def test_a_server_without_a_vault_key_says_which_one_to_set() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=os.environ | {"KEYBRAKE_PROXY_URL": KEYS["KEYBRAKE_PROXY_URL"]},  # noqa: TID251 - for a child process
        check=True, timeout=60,
    )  # fmt: skip
    assert "Set KEYBRAKE_VAULT_KEY_BILLING for charge" in done.stderr
