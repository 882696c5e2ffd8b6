"""Real processes for tests: `up` and `sandbox`, started as users start them, and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import forks
from tests.months import lately, to_next_day_s

SANDBOX_KEY = "rk_test_sandbox"
# One for all tests: a new client for each call reads the authorities' certificates anew, which
# takes longer than the call. No connection is kept: the other end is killed, and comes back.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
HTTP = httpx.Client(trust_env=False, timeout=60, limits=_LIMITS)
_URL = re.compile(r"http://(?:127\.0\.0\.1|0\.0\.0\.0):\d+")


@dataclass
class Running:
    """A process that has printed its address."""

    process: subprocess.Popen[str]
    url: str
    said: list[str] = field(default_factory=list)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self._close()

    def stop(self) -> int:
        """Ask it to end, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._close()
        return code

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


class ProxyProcesses:
    """One sandbox and any number of proxies on one store, each a process of its own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.extra = environ
        self.running: list[Running] = []
        self.sandbox = self.start_sandbox()

    def start_sandbox(self, port: int = 0) -> Running:
        """Start the sandbox on its file; `port` is the old one after a kill."""
        state = str(self.folder / "sandbox.db")
        return self._start(["sandbox", "--port", str(port), "--state", state], "listening on")

    def start_proxy(self, *options: str, port: int = 0) -> Running:
        """Start `up` on the store."""
        arguments = ["up", "--port", str(port), "--admin-port", "0", *options]
        return self._start(arguments, "MCP client configuration")

    def environ(self) -> dict[str, str]:
        """Return the environment of every process but the sandbox."""
        inherited = os.environ.items()  # noqa: TID251 - for a child process
        plain = {name: value for name, value in inherited if "KEYBRAKE" not in name}
        return plain | {
            "KEYBRAKE_DATABASE_URL": f"sqlite:///{self.folder}/ledger.db",
            "KEYBRAKE_STRIPE_KEY": SANDBOX_KEY,
            "KEYBRAKE_STRIPE_API_BASE": self.sandbox.url if hasattr(self, "sandbox") else "",
            **self.extra,
        }

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        done = forks.run(arguments, self.environ())
        assert not check or done.returncode == 0, done.stderr
        return done

    def issue(self, *options: str) -> str:
        """Issue a billing key, without a cap unless options give one, and return its token."""
        asked = options or ("--role", "billing")
        done = self.command("keys", "issue", "--json", "--uncapped", *asked)
        return str(json.loads(done.stdout)["token"])

    def stripe(self, path: str) -> dict[str, Any]:
        """Read from the sandbox, as Stripe's own dashboard would."""
        headers = {"Authorization": f"Bearer {SANDBOX_KEY}"}
        answer = HTTP.get(self.sandbox.url + path, headers=headers)
        return dict(answer.json())

    def charges(self) -> list[dict[str, Any]]:
        """Return every charge that succeeded, from all pages of the sandbox's list."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.stripe(f"/v1/charges?limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return [each for each in found if each["status"] == "succeeded"]
            after = f"&starting_after={page['data'][-1]['id']}"

    def fault(self, kind: str, times: int = 1, seconds: int = 0) -> None:
        """Let the sandbox fail the next charges."""
        fault = {"match": "POST /v1/charges", "kind": kind, "times": times, "seconds": seconds}
        HTTP.post(f"{self.sandbox.url}/_sandbox/faults", json=[fault])

    def turn_clock(self, seconds: int) -> None:
        """Advance the sandbox's clock."""
        body = {"advance_seconds": seconds}
        HTTP.post(f"{self.sandbox.url}/_sandbox/clock", json=body)

    def begin_day(self) -> None:
        """Turn the clock to an hour past midnight: the hours from then on are of one day."""
        self.turn_clock(to_next_day_s())

    def close(self) -> None:
        """End whatever still runs."""
        for each in self.running:
            if each.process.poll() is None:
                each.kill()

    def _start(self, arguments: list[str], last_line: str) -> Running:
        process = subprocess.Popen(
            [sys.executable, "-m", "kb_mcp", *arguments],
            env=self.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if last_line in line:
                break
        else:
            raise AssertionError(f"{arguments} ended: {''.join(said)}")
        url = next(match[0] for line in said if (match := _URL.search(line)))
        running = Running(process, url, said)
        threading.Thread(target=_hear, args=(process, said), daemon=True).start()
        self.running.append(running)
        return running


def _hear(process: subprocess.Popen[str], said: list[str]) -> None:
    """Keep what a process says later on, so that it never waits for a reader."""
    try:
        said.extend(process.stdout or ())
    except ValueError:
        return  # the process was ended, and its pipe closed


@contextmanager
def cluster(folder: Path, **environ: str) -> Iterator[ProxyProcesses]:
    """Start a sandbox; end it and every proxy that the test starts."""
    built = ProxyProcesses(folder, **environ)
    try:
        yield built
    finally:
        built.close()


def charge(url: str, token: str, **form: Any) -> httpx.Response:
    """Send one charge to the proxy at `url`."""
    fields = {"customer": "cus_A1", "amount": 2900, "currency": "usd", **form}
    if "period" in fields:
        fields["metadata[billing_period]"] = lately(fields.pop("period"))
    named = {name: str(value) for name, value in fields.items()}
    headers = {"Authorization": f"Bearer {token}"}
    return HTTP.post(f"{url}/v1/charges", data=named, headers=headers)
