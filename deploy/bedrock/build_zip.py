"""Build the Lambda deployment zip: `make lambda`, which runs this with its locks and its target.

Wing A and what it runs on, from locks/lambda.txt: no proxy's dependencies, no server, no MCP.
The same inputs give the same bytes.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can say
# The demo and the sandbox have no place beside real money; the rest is a few hundred kilobytes.
LEFT_OUT = ("demo", "sandbox")
PLATFORMS = {"x86_64": "manylinux2014_x86_64", "arm64": "manylinux2014_aarch64"}


def main() -> None:
    """Build `--out` for `--python` on `--arch`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "kb-mcp-lambda.zip")
    parser.add_argument("--python", default="3.13", help="the function's runtime")
    parser.add_argument("--arch", choices=PLATFORMS, default="x86_64")
    given = parser.parse_args()
    folder = given.out.with_suffix(".files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    install(folder, given.python, PLATFORMS[given.arch])
    add_package(folder / "kb_mcp")
    pack(folder, given.out)
    shutil.rmtree(folder)
    print(f"{given.out}  {given.out.stat().st_size / 1e6:.1f} MB")  # noqa: T201 - a script


def install(folder: Path, python: str, platform: str) -> None:
    """Put the locked dependencies into `folder`, for another machine than this."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    target = ["--target", str(folder), "--python-version", python, "--platform", platform]
    lock = ["--no-deps", "--require-hashes", "-r", str(ROOT / "locks" / "lambda.txt")]
    command = [*pip, *target, "--implementation", "cp", "--only-binary", ":all:", *lock]
    subprocess.run(command, check=True)  # noqa: S603 - our own command, no shell


def add_package(target: Path) -> None:
    """Copy the package itself, without what a function has no use for."""

    def unwanted(where: str, names: list[str]) -> list[str]:
        top = Path(where) == ROOT / "kb_mcp"
        return [n for n in names if n == "__pycache__" or (top and n in LEFT_OUT)]

    shutil.copytree(ROOT / "kb_mcp", target, ignore=unwanted)


def pack(folder: Path, out: Path) -> None:
    """Zip `folder` so that equal files make an equal zip."""
    shutil.rmtree(folder / "bin", ignore_errors=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                entry = zipfile.ZipInfo(str(file.relative_to(folder)), EPOCH)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                made.writestr(entry, file.read_bytes())


if __name__ == "__main__":
    main()
