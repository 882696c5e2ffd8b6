"""One client tried over one transport: what the upstream counts after each of its steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.clients.installs import environ, node
from tests.clients.others.catalogue import Other
from tests.clients.others.environments import HERE, python_in
from tests.months import lately

STEPS: Final = ("list", "charge", "again", "status")
SECONDS_MAX: Final = 120
Json = dict[str, Any]


@dataclass
class Outcome:
    """After each step that was made: charges counted. `failed` is why the others were not."""

    other: Other
    transport: str
    counted: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    failed: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that this client has at all: an SDK of Stripe's lists no tools."""
        if self.other.program == "":
            return ("list",) if self.other.by != "awslambdaric" else ("charge", "again", "status")
        return STEPS[1:] if self.other.program.startswith("stripe_") else STEPS

    @property
    def charged_once(self) -> bool:
        """Whether every step was made, and the upstream counted one charge at the end."""
        wanted = {"list": 0, "charge": 1, "again": 1, "status": 1}
        return self.counted == {step: wanted[step] for step in self.steps}


def case(
    transport: str, customer: str, url: str, keys: Mapping[str, str], *, root: bool = False
) -> Json:
    """Return what a client's program reads: where the server is, and the bill."""
    env = {
        "PATH": environ()["PATH"],
        "KEYBRAKE_PROXY_URL": url,
        "KEYBRAKE_VAULT_KEY_BILLING": keys["billing"],
        "KEYBRAKE_VAULT_KEY_AUDIT": keys["audit"],
    }
    return {
        "bill": {
            "customer_id": customer,
            "amount_cents": 2900,
            "billing_period": lately("2026-11"),
        },
        "url": None if transport == "stdio" else url if root else f"{url}/mcp",
        "headers": {"Authorization": f"Bearer {keys['both']}"},
        "command": sys.executable,
        "args": ["-m", "kb_mcp", "mcp"],
        "env": env,
    }


def program(other: Other, folder: Path) -> list[str]:
    """Return the command of a client's program, copied to where its packages are found."""
    if other.language == "node" and other.by == "itself":
        script = folder / "node_clients.mjs"
        shutil.copy(HERE / script.name, script)
        return [node(), str(script), other.program]
    # A bridge is used by the SDK that this project has itself.
    python = python_in(folder) if other.by == "itself" else sys.executable
    return [python, str(HERE / "python_clients.py"), other.program]


def drive(outcome: Outcome, command: list[str], given: Json, count: Callable[[], int]) -> None:
    """Run a client's program to its end, and count at the upstream after each step."""
    process = subprocess.Popen(
        command,
        env=environ() | QUIET | {"CASE": json.dumps(given)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    complaints: list[str] = []
    hearing = threading.Thread(target=complaints.extend, args=(process.stderr,), daemon=True)
    hearing.start()
    late = threading.Timer(SECONDS_MAX, process.kill)
    late.start()
    try:
        for line in process.stdout:
            step = _step(line)
            if step is not None:
                outcome.counted[step["step"]] = count()
                outcome.said[step["step"]] = step["said"]
                process.stdin.write("\n")
                process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended while it was told to go on: its complaints say why
    finally:
        late.cancel()
        process.kill()
        process.wait()
        hearing.join(5)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    if len(outcome.counted) < len(outcome.steps):
        last = [line.strip() for line in complaints if line.strip()]
        outcome.failed = last[-1][:300] if last else "it ended without a word"


QUIET: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "MCP_USE_ANONYMIZED_TELEMETRY": "false",
    "OTEL_SDK_DISABLED": "true",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "MASTRA_TELEMETRY_DISABLED": "1",
}


def _step(line: str) -> Json | None:
    """Read a line of a program's; some libraries write others between them."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "step" in found else None
