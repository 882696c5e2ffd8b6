"""The bundle for Claude Desktop, and the entry for the MCP registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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
    packed, folder = tmp_path / "kb-mcp-billing.mcpb", tmp_path / "installed"
    build = [sys.executable, str(BUNDLE / "build_bundle.py"), "--out", str(packed)]
    subprocess.run(build, check=True, capture_output=True)
    with zipfile.ZipFile(packed) as made:
        made.extractall(folder)
    done = mcpb("validate", str(folder / "manifest.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    server = manifest()["server"]
    command = server["mcp_config"]["args"]
    command = [part.replace("${__dirname}", str(folder)) for part in command]
    keys = {"billing_key": served.billing, "audit_key": "", "refunds_key": ""}
    answers = {"proxy_url": served.url, **keys}
    env = {
        name: re.sub(r"\$\{user_config\.(\w+)\}", lambda match: answers[match[1]], value)
        for name, value in server["mcp_config"]["env"].items()
    }
    # Nothing but the wheels in the bundle: no index, and a cache that is empty.
    env |= {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_PYTHON": sys.executable}
    uv = str(Path(sys.executable).with_name(server["mcp_config"]["command"]))
    bill = {"customer_id": "cus_Bundle", "amount_cents": 2900, "billing_period": "2026-11"}

    tools, (answer,) = use({"command": uv, "args": command, "env": env}, bill)

    assert tools == ["charge"]
    assert answer["status"] == "succeeded"


def test_the_manifest_says_what_the_catalogue_says() -> None:
    said = manifest()

    assert said["tools"] == [
        {"name": tool.name.value, "description": tool.title} for tool in TOOLS.values()
    ]
    secret = {name for name, each in said["user_config"].items() if each.get("sensitive")}
    assert secret == {"billing_key", "audit_key", "refunds_key"}


def test_the_registry_entry_is_within_its_bounds() -> None:
    entry = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    (package,) = entry["packages"]

    # Reverse-DNS with a dot in it, one slash, 3 to 200 characters.
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+/[a-zA-Z0-9._-]+", entry["name"])
    assert 3 <= len(entry["name"]) <= 200
    assert 1 <= len(entry["description"]) <= 100
    for variable in package["environmentVariables"]:
        assert variable["isSecret"] is ("KEY_" in variable["name"].removeprefix("KEYBRAKE_"))
        assert is_a_setting(variable["name"])


def is_a_setting(variable: str) -> bool:
    try:
        load_settings({variable: "?"})
    except SettingsError as error:
        return error.problem != "is not a setting"
    return True
