"""The wheel as a container runs it: no home, an unknown user, process 1, only /data writable."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.months import lately

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]

HERE = Path(__file__).parent / "container"
UID = "54321"
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED": "1"}
STORE = {"KEYBRAKE_DATABASE_URL": "sqlite:////data/keybrake.db"}


class Container:
    """What runs in it sees the installed wheel, its Python, and `/data`."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self.data, self.kb_mcp = folder / "data", installed / "kb-mcp"
        self.python = installed / "python"
        self._root = folder / "root"
        for each in (self.data, self._root):
            each.mkdir()
        self._readable = [installed.parent, sys.base_prefix, HERE]

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command that runs `arguments` as process 1 of a container."""
        inside = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
        entered = [str(HERE / "enter.sh"), str(self._root), str(self.data), UID]
        return [*inside, "--kill-child", "sh", *entered, *map(str, self._readable), "--",
                *map(str, arguments)]  # fmt: skip

    def run(
        self, *arguments: str | Path, env: Mapping[str, str] = STORE
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            self.command(*arguments), env=PLAIN | dict(env), capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip

    @contextmanager
    def up(self) -> Iterator[tuple[str, int]]:
        """Serve in it; give the address and the process that its first process is out here."""
        ports = ("--port", "0", "--admin-port", "0", "--sandbox-port", "0")
        process = subprocess.Popen(
            self.command(self.kb_mcp, "up", "--host", "0.0.0.0", *ports),
            env=PLAIN | STORE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "MCP client configuration" in line:
                break
        else:
            raise AssertionError("".join(said))
        hearing = threading.Thread(target=process.stdout.read, daemon=True)
        hearing.start()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = re.search(r"Agents: (http://127\.0\.0\.1:\d+)", said[0])
        assert found is not None
        try:
            yield found[1], int(children[0])
            # The drain of a stop, as an orchestrator asks for it.
            os.kill(int(children[0]), signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(30)
            hearing.join(30)
            process.stdout.close()


@pytest.fixture
def container(tmp_path: Path, installed: Path) -> Container:
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"this machine gives no namespaces: {tried.stderr.strip()}")
    return Container(tmp_path, installed)


def test_it_is_a_container_in_which_only_data_can_be_written(container: Container) -> None:
    facts = (
        "import os, pwd, json, pathlib\n"
        "def writes(p):\n"
        "    try: pathlib.Path(p, 'x').write_text('x'); return True\n"
        "    except OSError: return False\n"
        "known = [e for e in pwd.getpwall() if e.pw_uid == os.getuid()]\n"
        "print(json.dumps([os.getpid(), os.getuid(), len(known), 'HOME' in os.environ,\n"
        "    [p for p in ('/', '/usr', '/etc', '/data', '/dev') if writes(p)]]))"
    )
    found = container.run(container.python, "-c", facts)
    assert json.loads(found.stdout) == [1, int(UID), 0, False, ["/data"]], found.stderr


def test_migrated_and_served_from_it_every_door_charges_once(container: Container) -> None:
    migrated = container.run(container.kb_mcp, "migrate")
    assert "the newest" in migrated.stdout, migrated.stderr
    period = lately("2026-11")
    with container.up() as (url, _):
        key = (container.data / "keybrake.billing.key").read_text()
        # Its own network is this machine's: a door in a second container reaches it.
        first, again = (
            container.run(container.python, HERE / "doors.py", url, key, period, env={})
            for _ in range(2)
        )
        charged = json.loads(first.stdout or "null")
        assert charged, first.stderr
        assert len(set(charged.values())) == len(charged)
        assert all(each.startswith("ch_") for each in charged.values())
        assert json.loads(again.stdout) == charged
    listed = json.loads(container.run(container.kb_mcp, "operations", "list", "--json").stdout)
    assert sorted(each["charge_id"] for each in listed) == sorted(charged.values())
    assert container.run(container.kb_mcp, "doctor").returncode == 0
    assert container.run(container.kb_mcp, "audit", "verify").returncode == 0


def test_without_a_place_for_the_ledger_it_says_so_in_a_line(container: Container) -> None:
    for command in ("up", "migrate", "keys list", "mcp"):
        told = container.run(container.kb_mcp, *command.split(), env={})
        assert (told.returncode, told.stdout) == (2, ""), command
        error, hint = told.stderr.splitlines()
        assert "home folder" in error
        assert "sqlite:////data/keybrake.db" in hint
