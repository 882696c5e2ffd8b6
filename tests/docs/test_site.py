"""The documentation holds: generated pages, links, settings, and every command it shows."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kb_mcp.operators.alert_file import load_alert_file
from kb_mcp.proxy.access.policy import load_policy
from kb_mcp.settings import _KNOWN as KNOWN
from tests.cli.machine import CUSTOMER, Machine

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MINE = ["index", "concepts", "operators", "runbooks", "alerts", "metrics", "audit", "upgrading",
        "comparison", "settings"]  # fmt: skip
BLOCK = re.compile(
    r"^(?P<indent> *)<!-- (?P<how>runs|not run): (?P<what>[^>]*?) -->\n"
    r" *```(?P<kind>\w+)\n(?P<body>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
ASKING = """version = 1
role = "asking"
allow = ["POST /v1/charges"]
[approval_above]
usd = 1000
"""


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


LEGACY = {"amount": "2900", "currency": "usd", "customer": CUSTOMER}


@dataclass(frozen=True)
class Scene:
    """A store in a certain state, and what a page's variables stand for in it."""

    machine: Machine
    variables: dict[str, str]


def plain(machine: Machine) -> dict[str, str]:
    token = machine.token()
    machine.charge(token, period="2026-11")
    (operation,) = machine.json("operations", "list")
    return {"KEY": operation["key_id"], "OPERATION": operation["id"]}


def unknown(machine: Machine, kind: str = "drop_after") -> dict[str, str]:
    token = machine.token()
    machine.fault(kind)
    assert machine.charge(token, period="2026-11").status_code == 504
    (operation,) = machine.json("operations", "list", "--state", "unknown")
    charges = machine.charges()
    found = {"CHARGE": str(charges[0]["id"])} if charges else {}
    return {"KEY": operation["key_id"], "OPERATION": operation["id"], **found}


def unsent(machine: Machine) -> dict[str, str]:
    variables = unknown(machine, "drop_before")
    machine.advance(3600)
    return variables


def looked(machine: Machine) -> dict[str, str]:
    variables = unsent(machine)
    void = ("operations", "resolve", variables["OPERATION"], "--void", "--reason", "nothing there")
    machine.run(*void, code=1)
    machine.advance(61)
    return variables


def pending(machine: Machine) -> dict[str, str]:
    file = machine.folder / "asking.toml"
    file.write_text(ASKING)
    issued = machine.json("keys", "issue", "--policy", str(file), "--uncapped")
    assert machine.charge(issued["token"], period="2026-11").status_code == 403
    (approval,) = machine.json("approvals", "list")
    return {"APPROVAL": approval["id"]}


def frozen(machine: Machine) -> dict[str, str]:
    token = machine.token()
    machine.fault("402", times=20)
    for number in range(20):
        machine.charge(token, period="2026-11", customer=f"cus_N{number}")
    (key,) = machine.json("keys", "list")
    assert key["frozen_at"] is not None
    return {"KEY": key["id"]}


def broken(machine: Machine) -> dict[str, str]:
    variables = plain(machine)
    machine.tamper("UPDATE audit SET amount = 1 WHERE amount = 2900")
    return variables


def restored(machine: Machine) -> dict[str, str]:
    token = machine.token()
    saved = machine.saved()
    assert machine.charge(token, period="2026-11").status_code == 200
    machine.restore(saved)
    machine.advance(700)
    return {}


def keyless(machine: Machine) -> dict[str, str]:
    assert machine.charge(machine.token(), period="2026-11").status_code == 200
    for file in machine.folder.glob("keybrake.db*"):
        if ".sandbox" not in file.name:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return {}


def beside(machine: Machine) -> dict[str, str]:
    machine.stripe("POST", "/v1/charges", LEGACY | {"metadata[keybrake_store]": "st_another"})
    return {}


def legacy(machine: Machine) -> dict[str, str]:
    machine.stripe("POST", "/v1/charges", LEGACY | {"description": "Subscription 2026-11"})
    return {}


SCENES: dict[str, Callable[[Machine], dict[str, str]]] = {
    each.__name__: each
    for each in (
        *(plain, unknown, unsent, looked, pending, frozen, broken),
        *(restored, keyless, beside, legacy),
    )
}


def blocks() -> list[Any]:
    found = [(name, match) for name in MINE for match in BLOCK.finditer(page(name))]
    return [
        pytest.param(match["what"], match["body"], id=f"{name}-{number}")
        for number, (name, match) in enumerate(found)
        if (match["how"], match["kind"]) == ("runs", "sh")
    ]


@pytest.mark.parametrize("name", MINE)
def test_every_shell_and_python_block_says_whether_it_runs(name: str) -> None:
    text = page(name)
    assert len(BLOCK.findall(text)) == len(re.findall(r"^ *```(?:sh|python)$", text, re.MULTILINE))


@pytest.mark.parametrize(("scene", "body"), blocks())
def test_every_command_of_the_docs_runs(
    tmp_path: Path, scene: str, body: str, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path)
    variables = {"STORE": str(machine.store), "CUSTOMER": CUSTOMER} | SCENES[scene](machine)
    for line in filter(None, (each.strip() for each in body.splitlines())):
        command, _, comment = line.partition("   # ")
        words = [_filled(word, variables) for word in shlex.split(command)]
        code = int(comment.removeprefix("exits ")) if comment else 0
        if words[0] == "kb-mcp":
            machine.run(*words[1:], code=code)
        else:
            assert words[0] == "sqlite-utils"
            done = subprocess.run(
                [sys.executable, "-m", "sqlite_utils", *words[1:]],
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), (line, done.stderr)
    capfd.readouterr()


def _filled(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$([A-Z]+)", lambda match: variables[match[1]], word)


def test_the_generated_pages_are_what_the_code_says() -> None:
    for name, write in module("reference").PAGES.items():
        stale = f"docs/{name} is out of date: python docs/reference.py"
        assert (DOCS / name).read_text(encoding="utf-8") == write(), stale


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    inherited = dict(os.environ)  # noqa: TID251 - for a child process
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env=inherited | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= len(MINE)
    for each in pages:
        # Links may lead elsewhere; what the page itself loads may not.
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="([^"]*)"', each.read_text())
        assert [url for url in loaded if "//" in url] == []


def test_every_page_is_in_the_navigation_once() -> None:
    sections = module("navigation").navigation(DOCS)
    named = [name for section in sections for names in section.values() for name in names]
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    documented = set(re.findall(r"`(KEYBRAKE_[A-Z_]+)` \|", page("settings")))
    for name in documented:
        assert name in KNOWN, name
    # Every secret has a _FILE beside it, which the page says once for all of them.
    assert {
        name for name in KNOWN if name.removesuffix("_FILE") not in KNOWN - {name}
    } == documented


@pytest.mark.parametrize("file", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str)
def test_every_link_to_a_file_leads_somewhere(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(((?!https?://|#|mailto:)[^)#\s]+)", text)
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_every_module_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|html))`", text))
    assert len(named) > 10
    roots = (ROOT, ROOT / "kb_mcp", ROOT / "kb_mcp" / "proxy")
    assert [each for each in sorted(named) if not any((r / each).exists() for r in roots)] == []


def test_the_alerts_and_policies_shown_are_ones_that_load() -> None:
    alerts, channel = re.findall(r"```toml\n(.*?)```", page("alerts"), re.DOTALL)
    assert load_alert_file(alerts).webhook[0].url.startswith("https://")
    assert load_alert_file(f"version = 1\n{channel}").webhook[0].format == "slack"
    import tomllib

    (policy,) = re.findall(r"```toml\n(.*?)```", page("policies"), re.DOTALL)
    assert load_policy(tomllib.loads(policy)).role == "nightly-billing"


def test_the_receiver_shown_verifies_a_signature() -> None:
    (block,) = [match["body"] for match in BLOCK.finditer(page("alerts"))]
    names: dict[str, Any] = {}
    exec(block, names)
    body, secret = b'{"id": "x"}', b"secret"
    digest = hmac.new(secret, b"100." + body, hashlib.sha256).hexdigest()
    header = f"t=100,v1={digest}"
    assert names["verified"](header, body, secret, 120)
    assert not names["verified"](header, body + b" ", secret, 120)
    assert not names["verified"](header, body, secret, 1000)


def test_datasettes_metadata_fits_the_schema_and_its_queries_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    plain(machine)
    text = (ROOT / "deploy/datasette/metadata.json").read_text(encoding="utf-8")
    database = json.loads(text)["databases"]["keybrake"]
    connection = sqlite3.connect(f"file:{machine.store}?mode=ro", uri=True)
    try:
        for table, about in database["tables"].items():
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            wanted = {*about.get("facets", []), *about.get("columns", {})}
            wanted |= {about[name] for name in ("sort_desc", "label_column") if name in about}
            assert columns, table
            assert wanted <= columns
        for name, query in database["queries"].items():
            rows = connection.execute(query["sql"], {"customer": CUSTOMER}).fetchall()
            assert rows or name == "refusals_by_code"
    finally:
        connection.close()


def test_the_dashboard_for_grafana_asks_for_metrics_that_there_are(tmp_path: Path) -> None:
    from tests.in_process_proxy import InProcessProxy
    from tests.operators.operators_app import OperatorsApp

    with InProcessProxy(tmp_path) as in_process:
        in_process.charge(in_process.issue(daily={"usd": 5000}), period="2026-11")
        scraped = OperatorsApp(in_process).visitor().get("/metrics").text
    there = set(re.findall(r"^# TYPE (keybrake_\w+)", scraped, re.MULTILINE))
    text = (ROOT / "deploy/grafana/kb-mcp.json").read_text(encoding="utf-8")
    asked = set(re.findall(r"keybrake_\w+", text)) | set(
        re.findall(r"`(keybrake_\w+)", page("metrics"))
    )
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked} <= there
    assert {f"`{name}" for name in there} <= set(re.findall(r"`keybrake_\w+", page("metrics")))
