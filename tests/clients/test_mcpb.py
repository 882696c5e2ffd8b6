"""The bundle for Claude Desktop, and the entry for the MCP registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.agent.catalogue import TOOLS
from kb_mcp.settings import SettingsError, load_settings
from tests.clients.conftest import Served
from tests.clients.connect import use
from tests.clients.installs import environ, npm_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "deploy" / "mcpb"


def version() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def name() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["name"])


def manifest() -> dict[str, Any]:
    return dict(json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8")))


def mcpb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*npm_script("@anthropic-ai/mcpb", "dist/cli/cli.js"), *arguments]
    return subprocess.run(command, env=environ(), capture_output=True, text=True, check=False)


def test_the_manifest_is_valid(npm: str) -> None:
    del npm
    done = mcpb("validate", str(BUNDLE / "manifest.json"))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_validator_rejects_a_spoilt_manifest(npm: str, tmp_path: Path) -> None:
    del npm
    spoilt = tmp_path / "manifest.json"
    spoilt.write_text(json.dumps({**manifest(), "server": {"type": "uv"}}), encoding="utf-8")

    assert mcpb("validate", str(spoilt)).returncode != 0


def test_the_packed_bundle_starts_as_its_manifest_says(
    npm: str, served: Served, tmp_path: Path
) -> None:
    del npm
    packed = tmp_path / "kb-mcp.mcpb"
    done = mcpb("pack", str(BUNDLE), str(packed))
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(packed) as made:
        made.extractall(tmp_path / "installed")
    server = manifest()["server"]
    # What uv would do: run the entry point where the dependencies are.
    assert server["mcp_config"]["args"][-1] == server["entry_point"]
    answers = {"proxy_url": served.url, "billing_key": served.billing, "audit_key": ""}
    env = {
        name: re.sub(r"\$\{user_config\.(\w+)\}", lambda match: answers[match[1]], value)
        for name, value in server["mcp_config"]["env"].items()
    }
    entry = str(tmp_path / "installed" / server["entry_point"])
    bill = {"customer_id": "cus_Bundle", "amount_cents": 2900, "billing_period": "2026-11"}

    tools, (answer,) = use({"command": sys.executable, "args": [entry], "env": env}, bill)

    assert tools == ["charge"]
    assert answer["status"] == "succeeded"


def test_the_manifest_says_what_the_catalogue_says() -> None:
    said = manifest()

    assert said["tools"] == [
        {"name": tool.name.value, "description": tool.title} for tool in TOOLS.values()
    ]
    assert said["version"] == version()
    secret = {name for name, each in said["user_config"].items() if each.get("sensitive")}
    assert secret == {"billing_key", "audit_key"}
    with (BUNDLE / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["dependencies"] == [f"kb-mcp=={version()}"]


def test_the_registry_entry_is_within_its_bounds() -> None:
    entry = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    (package,) = entry["packages"]

    # Reverse-DNS with a dot in it, one slash, 3 to 200 characters.
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+/[a-zA-Z0-9._-]+", entry["name"])
    assert 3 <= len(entry["name"]) <= 200
    assert package["identifier"] == name()
    assert 1 <= len(entry["description"]) <= 100
    assert entry["version"] == package["version"] == version()
    assert f"mcp-name: {entry['name']}" in (ROOT / "README.md").read_text(encoding="utf-8")
    for variable in package["environmentVariables"]:
        assert variable["isSecret"] is ("KEY_" in variable["name"].removeprefix("KEYBRAKE_"))
        assert is_a_setting(variable["name"])


def is_a_setting(variable: str) -> bool:
    try:
        load_settings({variable: "?"})
    except SettingsError as error:
        return error.problem != "is not a setting"
    return True
