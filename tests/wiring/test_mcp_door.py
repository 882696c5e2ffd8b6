"""A tool call at /mcp: one request to the ledger's path, and nothing loaded on its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kb_mcp.operators.actions.keys import NewKey, issue_key, revoke_key
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.serving.machine import random_bytes
from tests.in_process_proxy import InProcessProxy, Issued

META: dict[str, object] = {"io.modelcontextprotocol/clientCapabilities": {}}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
CODE = """
import json, sys
from pathlib import Path
from tests.in_process_proxy import InProcessProxy

async def opened(agents):
    agents.open()

with InProcessProxy(Path(sys.argv[1])) as proxy:
    key = proxy.issue("billing-with-status", daily={"usd": 10_000})
    proxy.run(opened(proxy.agents))
    before = set(sys.modules)
    answer = proxy.charge_over_mcp(key, {"io.modelcontextprotocol/clientCapabilities": {}})
    assert answer.json()["result"]["structuredContent"]["status"] == "succeeded", answer.text
    print(json.dumps(sorted(set(sys.modules) - before)))
"""
# What takes long to import on the event loop. The Stripe SDK is the demo's alone.
HEAVY = frozenset({"mcp", "mcp_types", "httpx", "httpx2", "starlette", "stripe", "kb_mcp"})


def test_the_first_call_imports_nothing_that_others_would_wait_for(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = json.loads(done.stdout)

    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_who_calls_stands_in_the_audit_or_else_whom_the_key_was_issued_for(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        policy, ledger = built_in("billing-with-status"), proxy.proxy.store.ledger
        cases = (("mcp", "nightly", "nightly"), ("mcp", None, None), ("desk", "nightly", "desk"))
        for client, agent, shown in cases:
            info = {"name": client, "version": "1"}
            meta = {**META, "io.modelcontextprotocol/clientInfo": info}
            wanted = NewKey(policy=policy, mode="test", agent=agent, uncapped=True)
            key, minted = proxy.run(issue_key(ledger, wanted, random_bytes, "test"))

            proxy.charge_over_mcp(Issued(key.id, minted.token), meta)

            rows = [row for row in proxy.audit(key=key.id) if row["kind"] != "admin"]
            assert {row["agent_id"] for row in rows} == {shown}


def test_a_call_leaves_its_decision_and_its_outcome_and_no_look_up(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue("billing-with-status", daily={"usd": 10_000})

        proxy.charge_over_mcp(key, META)

        kinds = [row["kind"] for row in proxy.audit(key=key.id) if row["kind"] != "admin"]
        assert kinds == ["decision", "outcome"]


def test_whatever_is_no_call_is_a_request_of_its_own_in_the_audit(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue("audit")
        headers = {"Authorization": f"Bearer {key.token}", "Accept": "application/json"}

        listed = proxy.client.post("/mcp", json=LIST, headers=headers).json()

        rows = [row for row in proxy.audit(key=key.id) if row["kind"] != "admin"]
        assert [tool["name"] for tool in listed["result"]["tools"]] == ["charge_status"]
        assert [(row["kind"], row["path"]) for row in rows] == [("read", "/keybrake/v1/key")]


def test_a_revoked_key_is_turned_away_at_its_next_call(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue("billing-with-status", daily={"usd": 10_000})
        assert proxy.charge_over_mcp(key, META).status_code == 200
        store = proxy.proxy.store
        proxy.run(revoke_key(store.ledger, store.records, KeyId(key.id), None, "test", 0))

        refused = proxy.charge_over_mcp(key, META)

        assert refused.status_code == 401
        assert "revoked" in refused.json()["error_description"]
        assert "resource_metadata" not in refused.headers["www-authenticate"]
