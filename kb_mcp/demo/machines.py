"""The processes of the demo, always ended, and its own line to the sandbox.

Floor: the demo, ground. Nothing waits for a time to pass: a process is ready when it has printed
its address, and one that does not get there is killed. The sandbox's lists of charges and refunds
are the only witness: the demo keeps no count of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

import kb_mcp

# Far beyond what a busy machine takes: it ends what hangs, and decides nothing else.
ANSWER_SECONDS_MAX: Final = 60
_END_SECONDS_MAX: Final = 5
_ADDRESS = re.compile(r"http://127\.0\.0\.1:[0-9]+")


class DemoError(Exception):
    """The demo itself is broken: a process did not start, or did not do what it is told to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one invocation: `status` is HTTP's, `error` the name of what was raised."""

    status: int | None
    body: Mapping[str, Any]
    error: str | None = None

    @property
    def said(self) -> str:
        """The answer in two words."""
        words = (self.status, self.error or self.body.get("status"), self.body.get("code"))
        return " ".join(str(word) for word in words if word is not None)


class Machine:
    """One running process, whose stderr goes to `log`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        """Hold `process`, whose stdin and stdout are pipes."""
        assert process.stdin is not None  # noqa: S101 - see above
        assert process.stdout is not None  # noqa: S101 - see above
        self._kill, self._in, self._out, self._log = (
            process.kill,
            process.stdin,
            process.stdout,
            log,
        )

    def address(self, label: str) -> str:
        """Return the address in the line that starts with `label`. Raises: DemoError."""
        while not (line := self._line()).startswith(label):
            pass
        found = _ADDRESS.search(line)
        if found is None:
            raise DemoError(f"no address in {line!r}")
        return found.group()

    def invoke(self, event: Mapping[str, Any]) -> Outcome:
        """Give a Lambda runtime one event. Raises: DemoError."""
        # One that has died takes no event; reading its answer will tell why.
        with suppress(BrokenPipeError):
            self._in.write(json.dumps(event) + "\n")
            self._in.flush()
        told = json.loads(self._line())
        if "error" in told:
            error = told["error"]
            return Outcome(error["http_status"], error, error["type"])
        response = told["answer"]["response"]
        body = json.loads(response["responseBody"]["application/json"]["body"])
        return Outcome(response["httpStatusCode"], body)

    def _line(self) -> str:
        # A killed process ends its stdout, and with it the read.
        watchdog = threading.Timer(ANSWER_SECONDS_MAX, self._kill)
        watchdog.start()
        try:
            line = self._out.readline()
        finally:
            watchdog.cancel()
        if not line:
            logged = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((each.strip() for each in reversed(logged) if each.strip()), "silently")
            raise DemoError(f"{self._log.stem} ended: {last}")
        return line


@contextmanager
def running(arguments: list[str], environ: Mapping[str, str], log: Path) -> Iterator[Machine]:
    """Run `python -m …`, and end it: politely, then not."""
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(environ),
            cwd=log.parent,
            # Ctrl-C reaches the demo alone, which then ends its processes in order.
            start_new_session=True,
        )
    try:
        yield Machine(process, log)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def command(arguments: list[str], environ: Mapping[str, str], folder: Path) -> Any:
    """Run `kb-mcp …` to its end; return the JSON it prints. Raises: DemoError, TimeoutExpired."""
    done = subprocess.run(  # noqa: S603 - our own commands, no shell
        [sys.executable, "-m", "kb_mcp", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=_environment(environ),
        cwd=folder,
        timeout=ANSWER_SECONDS_MAX,
    )
    if done.returncode:
        raise DemoError(f"kb-mcp {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    # Not the caller's: no key, proxy or setting of theirs may reach the demo, or be reached by it.
    package = str(Path(kb_mcp.__file__).parents[1])
    return {"PATH": os.defpath, "PYTHONPATH": package, "PYTHONUTF8": "1", **environ}


STRIPE_KEY: Final = "rk_test_sandbox"
_LISTED_MAX: Final = 100


class SandboxClient:
    """Talks HTTP to the running sandbox at `address`; close it when done. Raises: DemoError."""

    def __init__(self, address: str) -> None:
        """Talk with the key that the sandbox takes, and through no proxy of the user's."""
        headers = {"Authorization": f"Bearer {STRIPE_KEY}"}
        self._http = httpx.Client(base_url=address, headers=headers, trust_env=False)
        self.close = self._http.close

    def made(self, noun: str, among: Mapping[str, str]) -> list[str]:
        """Return the ids of charges that moved money, or of refunds: those `among` says."""
        listed = self._ask("GET", f"/v1/{noun}s", params={**among, "limit": str(_LISTED_MAX)})
        if listed["has_more"]:
            raise DemoError(f"more {noun}s than a demo makes")
        return [each["id"] for each in listed["data"] if each.get("paid", True)]

    def lose_answers(self, times: int, endpoint: str) -> None:
        """Let the next `times` requests to `endpoint` happen and their answers get lost."""
        fault = {"match": endpoint, "kind": "drop_after", "times": times}
        self._ask("POST", "/_sandbox/faults", json=[fault])

    def answers_still_to_lose(self) -> int:
        """Return how many faults nobody has met."""
        return sum(each["times"] for each in self._ask("GET", "/_sandbox/faults")["faults"])

    def advance(self, seconds: int) -> None:
        """Turn the sandbox's clock forward."""
        self._ask("POST", "/_sandbox/clock", json={"advance_seconds": seconds})

    def month(self) -> str:
        """Return the billing period of today, by the sandbox's clock."""
        now_s = self._ask("GET", "/_sandbox/clock")["now_ms"] // 1000
        return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m")

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        answer = self._http.request(method, path, **content)
        if answer.status_code != 200:
            raise DemoError(f"the sandbox says {answer.status_code}: {answer.text}")
        return answer.json()
