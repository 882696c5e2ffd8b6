"""The wheel, built and installed once for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing of the checkout in its environment, and return its output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}  # noqa: TID251 - for a child process
    environ = kept | {"HOME": str(cwd), "XDG_DATA_HOME": str(cwd / "data")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` of a clean environment: the locked dependencies, then the built wheel."""
    base = tmp_path_factory.mktemp("wheel")
    built = ("-m", "build", "--wheel", "--no-isolation", "--outdir", base, ROOT)
    run(sys.executable, *built, cwd=base)
    (wheel,) = base.glob("*.whl")
    run(sys.executable, "-m", "venv", base / "venv", cwd=base)
    python = base / "venv" / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet", "--no-deps")
    run(*install, "--require-hashes", "-r", ROOT / "locks" / "run.txt", cwd=base)
    run(*install, "--no-index", wheel, cwd=base)
    return python.parent
