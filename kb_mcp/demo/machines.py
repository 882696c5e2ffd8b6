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
    """One running process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        """Hold `process`, whose stderr goes to `log`."""
        self._process = process
        self._log = log

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
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        # One that has died takes no event; reading its answer will tell why.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(event) + "\n")
            self._process.stdin.flush()
        told = json.loads(self._line())
        if "error" in told:
            error = told["error"]
            return Outcome(error["http_status"], error, error["type"])
        response = told["answer"]["response"]
        body = json.loads(response["responseBody"]["application/json"]["body"])
        return Outcome(response["httpStatusCode"], body)

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - it was opened as a pipe
        # A killed process ends its stdout, and with it the read.
        watchdog = threading.Timer(ANSWER_SECONDS_MAX, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise DemoError(f"{self._log.stem} ended: {_last_line(self._log)}")
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
        _end(process)


def command(arguments: list[str], environ: Mapping[str, str], folder: Path) -> Any:
    """Run `kb-mcp …` to its end and return the JSON it prints. Raises: DemoError."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands, no shell
            [sys.executable, "-m", "kb_mcp", *arguments],
            check=True,
            capture_output=True,
            text=True,
            env=_environment(environ),
            cwd=folder,
            timeout=ANSWER_SECONDS_MAX,
        )
    except subprocess.CalledProcessError as error:
        raise DemoError(f"kb-mcp {' '.join(arguments)}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"kb-mcp {' '.join(arguments)} does not end") from error
    return json.loads(done.stdout)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    # Not the caller's: no key, proxy or setting of theirs may reach the demo, or be reached by it.
    return {
        "PATH": os.defpath,
        "PYTHONPATH": str(Path(kb_mcp.__file__).parents[1]),
        "PYTHONUTF8": "1",
        **environ,
    }


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


STRIPE_KEY: Final = "rk_test_sandbox"
_LISTED_MAX: Final = 100


class SandboxClient:
    """Talks HTTP to a running sandbox; close it when done."""

    def __init__(self, address: str) -> None:
        """Talk to the sandbox at `address`."""
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {STRIPE_KEY}"},
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def made(self, noun: str, among: Mapping[str, str]) -> list[str]:
        """Return the ids of the charges that moved money, or of the refunds, `among` those of one.

        Raises: DemoError.
        """
        query = {**among, "limit": str(_LISTED_MAX)}
        listed = self._done(self._http.get(f"/v1/{noun}s", params=query))
        if listed["has_more"]:
            raise DemoError(f"more {noun}s than a demo makes")
        return [each["id"] for each in listed["data"] if each.get("paid", True)]

    def lose_answers(self, times: int, endpoint: str) -> None:
        """Let the next `times` requests to `endpoint` happen and their answers get lost."""
        fault = {"match": endpoint, "kind": "drop_after", "times": times}
        self._done(self._http.post("/_sandbox/faults", json=[fault]))

    def answers_still_to_lose(self) -> int:
        """Return how many faults nobody has met."""
        faults = self._done(self._http.get("/_sandbox/faults"))["faults"]
        return sum(fault["times"] for fault in faults)

    def advance(self, seconds: int) -> None:
        """Turn the sandbox's clock forward."""
        self._done(self._http.post("/_sandbox/clock", json={"advance_seconds": seconds}))

    def month(self) -> str:
        """Return the billing period of today, by the sandbox's clock."""
        now_ms = self._done(self._http.get("/_sandbox/clock"))["now_ms"]
        return datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y-%m")

    def _done(self, answer: httpx.Response) -> Any:
        if answer.status_code != 200:
            raise DemoError(f"the sandbox says {answer.status_code}: {answer.text}")
        return answer.json()
