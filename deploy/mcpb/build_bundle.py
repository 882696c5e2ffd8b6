"""Builds the bundle for desktop clients: dist/kb-mcp-billing.mcpb, with every wheel that it needs.

    python deploy/mcpb/build_bundle.py [--out FILE]

`uv` installs from the wheels inside the bundle and asks no index. They are those of
locks/run.txt for the machine that builds: build once a platform.
"""

# ruff: noqa: INP001, S603, T201 - a script that runs pip and prints where the bundle is

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def build(out: Path) -> None:
    """Write the bundle to `out`. Raises: CalledProcessError, when a wheel cannot be had."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="kb-mcp-bundle-") as name:
        folder = Path(name) / "bundle"
        shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__", "build_*.py"))
        _narrow(folder / "pyproject.toml")
        wheels = folder / "wheels"
        lock = ["--require-hashes", "--requirement", str(ROOT / "locks" / "run.txt")]
        download = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*download, "--dest", str(wheels), *lock], check=True)
        own = [*pip, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*own, "--wheel-dir", str(wheels), str(ROOT)], check=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
            for path in sorted(folder.rglob("*")):
                bundle.write(path, path.relative_to(folder))


def _narrow(project: Path) -> None:
    """Say for which Python and system the wheels are, or uv asks for those of every other."""
    text = project.read_text(encoding="utf-8")
    minor = f"=={sys.version_info.major}.{sys.version_info.minor}.*"
    text = text.replace('requires-python = ">=3.11"', f'requires-python = "{minor}"')
    text += f"environments = [\"sys_platform == '{sys.platform}'\"]\n"
    project.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the bundle for desktop clients.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "kb-mcp-billing.mcpb")
    target = parser.parse_args().out
    build(target)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
