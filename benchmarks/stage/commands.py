"""A command of kb-mcp as users run it: how long it took and how much memory it held at most."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stage.children import TIED, end
from stage.house import House


@dataclass(frozen=True)
class Done:
    """One run of a command; `lines` of output."""

    seconds: float
    peak_mib: float
    lines: int


def timed(house: House, *arguments: str, within_s: float) -> Done:
    """Run one command to its end, which must be good, its output to a file."""
    output = house.folder / "output"
    begun = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*TIED, sys.executable, "-m", "kb_mcp", *arguments], env=house.environ(), stdout=file,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        status, peak = _wait(process, time.monotonic() + within_s)
    took = time.perf_counter() - begun
    assert status == 0, f"{arguments} ended with {status}"
    return Done(took, peak / 1024, _lines(output))


def _wait(process: subprocess.Popen[str], until: float) -> tuple[int, int]:
    """Return the exit code and the most KiB it held; end it when its time is over.

    What the kernel says at the end (ru_maxrss) would count this script's own memory, too: a child
    begins as a copy of it.
    """
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_kib(process.pid))
        if time.monotonic() > until:
            end(process)
            return -1, peak
        time.sleep(0.002)
    return process.returncode, peak


def _peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:  # gone
        return 0
    named = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(next(named, "0"))


def _lines(file: Path) -> int:
    count = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(b"\n")
    return count
