"""Load from wrk: closed loop, as many clients as asked for, one thread on the load's core."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stage.machine import pinned, tool

SCRIPT = Path(__file__).with_name("charges.lua")


@dataclass(frozen=True)
class Job:
    """What the clients ask for: `mode` and the arguments of charges.lua."""

    mode: str
    token: str
    prefix: str = "x"
    first: int = 0
    count: int = 1
    period: str = "2026-01"
    object_id: str = "ch_1"

    def arguments(self) -> list[str]:
        """Return the arguments in the order of the script."""
        return [
            self.mode, self.token, self.prefix, str(self.first), str(self.count), self.period,
            self.object_id,
        ]  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What wrk saw. `sent` counts requests that were made, those cut off at the end included."""

    sent: int
    answered: int
    seconds: float
    p50_us: int
    p99_us: int
    not_2xx: int
    broken: int

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


def wrk(url: str, job: Job, *, clients: int, seconds: float, core: int) -> Ran:
    """Run `job` against `url` for `seconds` (whole ones, at least 1)."""
    program = tool("wrk")
    assert program is not None, "wrk is absent"
    host = urlsplit(url)
    command = [
        program, "--threads", "1", "--connections", str(clients),
        "--duration", f"{max(round(seconds), 1)}s", "--timeout", "30s", "--script", str(SCRIPT),
        f"http://{host.hostname}:{host.port}/", "--", *job.arguments(),
    ]  # fmt: skip
    done = subprocess.run(
        pinned(core, command), capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.strip().rpartition("\n")[2])
    assert found["answered"], f"no answer from {url} in {seconds} s: {found}"
    return Ran(
        sent=found["sent"], answered=found["answered"], seconds=found["duration_us"] / 1e6,
        p50_us=found["p50_us"], p99_us=found["p99_us"], not_2xx=found["not_2xx"],
        broken=found["broken"],
    )  # fmt: skip
