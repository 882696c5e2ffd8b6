"""What a token reaches, and for whom the audit says that something was done."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.agent.client.line import CallContext, is_live, read_subject
from kb_mcp.proxy.edge.pipeline import NAMED_MAX
from tests.identity.conftest import MCP_META, Provider, bearer, grant
from tests.in_process_proxy import InProcessProxy, Issued, error_of

AGENT = "sub=agent-7"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


def tools(in_process: InProcessProxy, token: Issued) -> list[str]:
    headers = {
        "Authorization": f"Bearer {token.token}",
        "Accept": "application/json, text/event-stream",
    }
    listed = in_process.client.post("/mcp", json=LIST, headers=headers).json()
    return [tool["name"] for tool in listed["result"]["tools"]]


@pytest.mark.parametrize(
    ("claims", "offered"),
    [
        ({}, ["charge", "charge_status"]),
        ({"scope": "openid profile"}, ["charge", "charge_status"]),
        ({"scope": "openid charge"}, ["charge"]),
        ({"scope": "charge_status"}, ["charge_status"]),
        ({"scp": ["charge", "charge_status"]}, ["charge", "charge_status"]),
        ({"scope": "refund"}, []),
        ({"scope": "CHARGE"}, ["charge", "charge_status"]),
        ({"scope": ["charge"], "scp": "charge_status"}, ["charge", "charge_status"]),
    ],
    ids=str,
)
def test_scopes_decide_which_tools_there_are(
    provider: Provider,
    in_process: InProcessProxy,
    key: Issued,
    claims: dict[str, Any],
    offered: list[str],
) -> None:
    grant(in_process, key, provider.url, AGENT)
    token = bearer(provider.sign(**claims))

    charged = in_process.charge(token, period="2026-11")
    looked = in_process.get(token, "/v1/charges/ch_1")
    listed = in_process.get(token, "/keybrake/v1/operations?charge_id=ch_1")

    assert tools(in_process, token) == offered
    assert (charged.status_code == 200) is ("charge" in offered)
    assert (looked.status_code == 404) is ("charge_status" in offered)
    assert (listed.status_code == 200) is ("charge_status" in offered)
    beyond = [each for each in (charged, looked, listed) if each.status_code == 403]
    assert {error_of(each) for each in beyond} <= {"tool_not_granted"}


def test_a_tool_beyond_the_scopes_is_a_challenge_that_names_the_scope(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)

    refused = in_process.charge_over_mcp(bearer(provider.sign(scope="charge_status")), MCP_META)

    challenge = refused.headers["www-authenticate"]
    assert (refused.status_code, refused.json()["code"]) == (403, "tool_not_granted")
    assert 'error="insufficient_scope"' in challenge
    assert 'scope="charge"' in challenge
    assert in_process.charges() == []


def test_a_token_is_told_the_mode_of_its_vault_key(
    provider: Provider, in_process: InProcessProxy
) -> None:
    grant(in_process, in_process.issue("billing", daily={"usd": 100}), provider.url, AGENT)

    over = in_process.charge_over_mcp(bearer(provider.sign()), MCP_META).json()

    told = over["result"]["structuredContent"]
    assert (told["code"], told["livemode"]) == ("spend_cap_exceeded", False)
    # Where nobody says, a token may be one for real money; only a test key is known not to be.
    assert [is_live(each) for each in ("vk_test_a", "vk_live_a", "ey.a.b")] == [False, True, True]


def test_scopes_give_no_more_than_the_key_may(
    provider: Provider, in_process: InProcessProxy
) -> None:
    audit = in_process.issue("audit")
    grant(in_process, audit, provider.url, AGENT)
    token = bearer(provider.sign(scope="charge charge_status refund"))

    assert tools(in_process, token) == ["charge_status"]
    assert error_of(in_process.charge(token, period="2026-11")) == "vault_key_not_authorized"
    unknown = in_process.charge_over_mcp(token, MCP_META).json()
    assert unknown["error"]["code"] == -32602


def test_the_audit_says_for_whom_a_token_charged(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    token = bearer(provider.sign())
    subject = f"{provider.url} agent-7"

    headers = {"Authorization": f"Bearer {token.token}", "Keybrake-Subject": "somebody else"}
    form = {"customer": "cus_A1", "amount": "2900", "currency": "usd"}
    in_process.client.post("/v1/charges", data=form, headers=headers)
    in_process.charge_over_mcp(token, {**MCP_META, "keybrake_subject": "somebody else"})

    rows = in_process.audit(subject=subject)
    assert {row["kind"] for row in rows} >= {"decision", "outcome"}
    assert in_process.audit(subject="said:somebody else") == []


def test_the_audit_says_whose_genuine_token_was_refused(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    pipeline, store = in_process.proxy.app.pipeline, in_process.proxy.store
    stranger = bearer(provider.sign(sub="agent-8"))

    refused = [in_process.charge(stranger), in_process.charge_over_mcp(stranger, MCP_META)]
    for number in range(NAMED_MAX):
        in_process.charge(bearer(provider.sign(sub=f"crowd-{number}")))
    in_process.run(pipeline.refusal_counts.flush(store.ledger))

    assert [each.status_code for each in refused] == [403, 403]
    (row,) = in_process.audit(subject=f"{provider.url} agent-8")
    assert (row["code"], row["note"]) == ("identity_not_granted", "2 requests")
    assert len(in_process.audit(code="identity_not_granted")) == NAMED_MAX + 1


def test_what_a_caller_says_is_marked_as_said(in_process: InProcessProxy, key: Issued) -> None:
    headers = {"Authorization": f"Bearer {key.token}", "Keybrake-Subject": "  maria\x1b[2J  "}
    form = {"customer": "cus_A1", "amount": "2900", "currency": "usd"}
    in_process.client.post("/v1/charges", data=form, headers=headers)
    in_process.charge_over_mcp(key, {**MCP_META, "keybrake_subject": "https://idp.example eve"})

    said = {row["subject"] for row in in_process.audit() if row["kind"] != "admin"}
    assert said == {"said:maria[2J", "said:https://idp.example eve"}


def test_a_subject_sent_twice_is_refused(in_process: InProcessProxy, key: Issued) -> None:
    headers = [
        ("Authorization", f"Bearer {key.token}"),
        ("Keybrake-Subject", "a"),
        ("Keybrake-Subject", "b"),
    ]

    refused = in_process.client.post("/v1/charges", data={"amount": "1"}, headers=headers)

    assert error_of(refused) == "parameter_duplicate"


@pytest.mark.parametrize(
    ("attributes", "subject"),
    [
        (({"keybrake_subject": "maria"},), "maria"),
        (({"Keybrake-Subject": "maria"}, {"keybrake_subject": "eve"}), "maria"),
        ((None, {"keybrake/subject": "maria"}), "maria"),
        (({"keybrake_subject": ""}, {"keybrake_subject": "maria"}), "maria"),
        (({"keybrake_subject": 7}, ["x"], "y"), None),
        (({"subject": "maria"},), None),
    ],
    ids=str,
)
def test_a_subject_is_read_from_session_attributes_and_metadata(
    attributes: tuple[object, ...], subject: str | None
) -> None:
    assert read_subject(*attributes) == subject
    assert CallContext(subject=subject).headers().get("Keybrake-Subject") == subject
