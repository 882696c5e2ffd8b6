"""An environment of its own for each client, under build/, from a lock with hashes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

from tests.clients.installs import NODE_HOME, InstallError, node, run
from tests.clients.others.catalogue import Other

HERE = Path(__file__).resolve().parent
LOCKS = HERE / "locks"
BUILD = HERE.parents[2] / "build" / "clients"


def installed(other: Other) -> Path:
    """Install what `other` needs unless it is there; return the folder. Raises: InstallError."""
    folder, lock = BUILD / other.lock, lock_of(other)
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / "installed.sha256"
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in install_commands(other):
            run(command, folder)
        stamp.write_text(wanted)
    return folder


def install_commands(other: Other) -> list[list[str]]:
    """Return what installs `other`, run in its folder."""
    lock = lock_of(other)
    if other.language == "node":
        for name in ("package.json", "package-lock.json"):
            shutil.copy(lock.with_name(name), BUILD / other.lock)
        npm = NODE_HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        return [[node(), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]]
    pip = ["venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [
        [sys.executable, "-m", "venv", "--clear", "venv"],
        [*pip, "--no-deps", "--require-hashes", "-r", str(lock)],
    ]


def lock_of(other: Other) -> Path:
    """Return the file that pins every package of `other`."""
    if other.language == "node":
        return LOCKS / other.lock / "package-lock.json"
    return LOCKS / f"{other.lock}.txt"


def version_of(other: Other) -> str:
    """Return the pinned version of the package that is shown."""
    text = lock_of(other).read_text(encoding="utf-8")
    if other.language == "node":
        return str(json.loads(text)["packages"][f"node_modules/{other.package}"]["version"])
    found = re.search(rf"^{re.escape(other.package)}==(\S+)", text, re.MULTILINE)
    if found is None:
        raise InstallError(f"{other.package} is not in {lock_of(other).name}")
    return found[1]


def python_in(folder: Path) -> str:
    """Return the Python of the environment in `folder`."""
    return str(folder / "venv" / "bin" / "python")
