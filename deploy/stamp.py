"""Writes the version and the name of a release into every file that repeats them.

    python deploy/stamp.py

The version stands in kb_mcp/__init__.py, the names in pyproject.toml: `project.name`, and
`tool.release.registry_name`, which is the account's own namespace in the MCP registry. A test
runs this and expects no difference.
"""

# ruff: noqa: INP001 - a script, no package

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def release() -> tuple[str, str, str]:
    """Return the version, the name of the distribution, and the name in the MCP registry."""
    text = (ROOT / "kb_mcp" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("kb_mcp/__init__.py has no __version__")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found[1], project["project"]["name"], project["tool"]["release"]["registry_name"]


def stamped() -> Iterator[tuple[Path, str]]:
    """Yield each file that repeats the version or a name, with the text that it should have."""
    version, name, registry_name = release()
    changes = {
        "server.json": [
            (r'(?m)^(  "name": )"[^"]*"', rf'\1"{registry_name}"'),
            (r'("version": )"[^"]*"', rf'\1"{version}"'),
            (r'("identifier": )"[^"]*"', rf'\1"{name}"'),
        ],
        "README.md": [(r"(<!-- mcp-name: )\S+( -->)", rf"\g<1>{registry_name}\2")],
        "deploy/mcpb/manifest.json": [(r'(?m)^(  "version": )"[^"]*"', rf'\1"{version}"')],
        "deploy/mcpb/pyproject.toml": [
            (r'(?m)^(version = )"[^"]*"', rf'\1"{version}"'),
            (r"(?m)^(dependencies = )\[[^]]*\]", rf'\1["{name}=={version}"]'),
        ],
        "deploy/kubernetes/keybrake.yaml": [(r"(image: kb-mcp:)\S+", rf"\g<1>{version}")],
    }
    for file, replacements in changes.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        for pattern, replacement in replacements:
            text, count = re.subn(pattern, replacement, text)
            if not count:
                raise SystemExit(f"{file} has no {pattern}")
        yield ROOT / file, text


if __name__ == "__main__":
    for path, text in stamped():
        path.write_text(text, encoding="utf-8")
