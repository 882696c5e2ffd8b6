"""MCP over HTTP: who asks is settled on every request, and nothing in an address is a key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacks.attacked_proxy import AttackedProxy, Issued
from tests.attacks.wire import Answer, ask

FAMILY = "MCP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to `/mcp`: its status, a piece of its text, what it is counted as."""

    name: str
    status: int
    says: str = ""
    counted: str | None = None
    target: str = "/mcp"
    method: str = "POST"
    host: str = "{host}"
    headers: tuple[str, ...] = ()
    authorization: str | None = "Bearer {token}"
    message: Any = None
    body: bytes | None = None
    key: str = "granted"
    role: str = "billing"


def charge(**arguments: object) -> dict[str, Any]:
    """Return a call of the tool `charge`."""
    bill = {"customer_id": "cus_Mcp{n}", "amount_cents": 2900, "billing_period": "{month}"}
    return _message("tools/call", {"name": "charge", "arguments": {**bill, **arguments}})


def _message(method: str, params: Mapping[str, object]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


CALLS = (
    Call(name="no key", authorization=None, status=401),
    Call(name="no bearer", authorization="Basic {token}", status=401),
    Call(name="two keys", headers=("Authorization: Bearer {token}",), status=401),
    Call(name="a word", authorization="Bearer password", status=401),
    Call(name="a Stripe key", authorization="Bearer sk_test_1", status=401),
    Call(name="a revoked key", key="revoked", status=401),
    Call(name="an expired key", key="expired", status=401),
    Call(name="key in the query", target="/mcp?token={token}", authorization=None, status=401),
    Call(name="access_token in the query", target="/mcp?access_token={token}", authorization=None,
         status=401),
    Call(name="key in a cookie", headers=("Cookie: token={token}",), authorization=None,
         status=401),
    Call(name="a session instead of a key", headers=("Mcp-Session-Id: 1",), authorization=None,
         status=401),
    Call(name="another host", host="evil.example", status=421, counted="host_unknown"),
    Call(name="another origin", headers=("Origin: https://evil.example",), status=403,
         counted="origin_not_allowed"),
    Call(name="a tool the key does not serve", role="audit", message=charge(), status=200,
         says="Unknown tool"),
    Call(name="an argument twice", status=400,
         body=b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"charge",'
         b'"arguments":{"customer_id":"cus_A","amount_cents":1,"amount_cents":2900,'
         b'"billing_period":"2026-06"}}}'),
    Call(name="an argument of its own", message=charge(transfer_data="acct_1"), status=200,
         says="invalid"),
    Call(name="a reference", message=charge(reference="again"), status=200, says="invalid"),
    Call(name="an amount with a point", message=charge(amount_cents=29.5), status=200,
         says="amount_cents"),
    Call(name="an amount below zero", message=charge(amount_cents=-1), status=200, says="amount"),
    Call(name="an invented period", message=charge(billing_period="2031-01"), status=200,
         says="period"),
    Call(name="no JSON", body=b"charge cus_1 2900", status=400),
    Call(name="many messages at once", body=json.dumps([charge(), charge()]).encode(), status=400),
    Call(name="a path below", target="/mcp/v1/charges", status=404, says="path_unknown"),
    Call(name="the method DELETE", method="DELETE", status=405),
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_what_was_not_granted_is_refused_over_mcp(attacked: AttackedProxy, call: Call) -> None:
    key = attacked.issue(call.role, call.key)
    before = attacked.reached()
    answer = _launch(attacked, call, key)
    assert answer.status == call.status, answer.body
    assert call.says in answer.body.decode()
    assert "ch_" not in answer.body.decode()
    assert attacked.reached() == before
    # The key's own look-up may be on record, and a refusal; nothing that Stripe answered.
    assert [row for row in attacked.rows(key) if row["stripe_status"]] == []
    if call.counted is not None:
        attacked.expected[call.counted] += 1


def test_a_charge_with_a_key_of_its_own_is_made_over_mcp(attacked: AttackedProxy) -> None:
    key = attacked.issue("billing-with-status")
    requests, charges = attacked.reached()
    answer = _launch(attacked, Call(name="accepted", status=200, message=charge()), key)
    assert answer.status == 200
    assert '"succeeded"' in answer.body.decode().replace("\\", "")
    assert attacked.reached()[1] == charges + 1
    assert any(row["stripe_status"] == 200 for row in attacked.rows(key))
    assert attacked.reached()[0] > requests


def _launch(attacked: AttackedProxy, call: Call, key: Issued) -> Answer:
    message = call.message if call.message is not None else _message("tools/list", {})
    text = call.body.decode() if call.body is not None else json.dumps(message)
    number = str(attacked.next())
    text = text.replace("{n}", number).replace("{month}", f"{attacked.now:%Y-%m}")
    lines = [
        f"{call.method} {call.target} HTTP/1.1",
        f"Host: {call.host}",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        "MCP-Protocol-Version: 2025-06-18",
        f"Content-Length: {len(text)}",
        *([f"Authorization: {call.authorization}"] if call.authorization else []),
        *call.headers,
    ]
    head = "\r\n".join([*lines, "", ""]).replace("{token}", key.token)
    return ask(
        attacked.agents,
        head.replace("{host}", f"{attacked.agents[0]}:{attacked.agents[1]}").encode()
        + text.encode(),
    )
