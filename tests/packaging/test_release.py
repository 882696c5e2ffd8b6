"""One place for the version and the names; no file installs another project."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from kb_mcp import __version__
from kb_mcp.cli.output import other_distribution

ROOT = Path(__file__).resolve().parents[2]
INSTALLS = re.compile(r"(?:pip install|uvx|pipx run|pipx install|uv add|--from)[^\n]*")


def test_every_file_says_the_version_and_the_names_of_this_release() -> None:
    stamped = runpy.run_path(str(ROOT / "deploy" / "stamp.py"))["stamped"]

    assert [str(path) for path, text in stamped() if path.read_text("utf-8") != text] == []


def test_no_file_tells_anyone_to_install_the_other_project() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("locks/") or not (ROOT / name).is_file():
            continue
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {line}" for line in INSTALLS.findall(text) if _names_the_other(line)]

    assert found == []


def _names_the_other(line: str) -> bool:
    return re.search(r"(?<![\w./-])kb-mcp(?![\w.-])(?!\s+(?:mcp|up|doctor|&&))", line) is not None


def test_the_version_is_that_of_the_distribution() -> None:
    command = [sys.executable, "-m", "kb_mcp", "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)

    assert done.stdout.strip() == f"kb-mcp-billing {__version__}"


def test_another_distribution_of_that_name_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert other_distribution() is None
    info = tmp_path / "kb_mcp-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kb-mcp\nVersion: 9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "kb_mcp", "keys", "list"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "kb-mcp, which is another project" in done.stderr
    assert "pip uninstall" in done.stderr
