"""One vault key for every tool that it grants: the proxy is asked which they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import (
    Answered,
    NotOffered,
    Unavailable,
    call_tool,
)
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.outcomes import ProxyUnavailableError, RateLimitedError
from kb_mcp.converse import ConverseTools
from tests.agent.conftest import Says, StubProxy, charge, refusal
from tests.agent.doors.conftest import BILL, BOTH, KEY, POST, grants

NOBODY = CallContext()
TOKEN = "vk_test_one"


@pytest.fixture
def one_key(proxy: StubProxy) -> Iterator[Billing]:
    made = Billing(TOKEN, NetworkLine(proxy.url))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("allow", "tools"),
    [
        (BOTH, {"charge", "charge_status"}),
        (BOTH[:1], {"charge"}),
        (BOTH[1:], {"charge_status"}),
        ([], set()),
    ],
    ids=["both", "billing", "audit", "neither"],
)
def test_the_tools_are_those_that_the_key_grants_when_asked(
    proxy: StubProxy, one_key: Billing, allow: list[str], tools: set[str]
) -> None:
    proxy.on(KEY, grants(*allow))

    assert one_key.wait(one_key.offered())[0] == tools
    config = ConverseTools(billing=one_key).tool_config()
    assert {tool["toolSpec"]["name"] for tool in config["tools"]} == tools


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (Says(503, refusal("draining")), ProxyUnavailableError),
        (
            Says(401, refusal("vault_key_revoked", "This vault key was revoked.")),
            ProxyUnavailableError,
        ),
        (Says(429, refusal("rate_limited")), RateLimitedError),
        (Says(200, {"policy": {}}), ProxyUnavailableError),
        (Says(200, "no json"), ProxyUnavailableError),
        (Says(drop=True), ProxyUnavailableError),
    ],
    ids=str,
)
def test_what_the_proxy_does_not_say_is_no_guess(
    proxy: StubProxy, one_key: Billing, says: Says, error: type[Exception]
) -> None:
    proxy.on(KEY, grants(*BOTH), says)

    assert one_key.wait(one_key.offered())

    with pytest.raises(error):
        assert one_key.wait(one_key.offered())


def test_a_call_is_one_request(proxy: StubProxy, one_key: Billing) -> None:
    proxy.on(POST, Says(200, charge()))

    answer = call_tool(one_key, "charge", BILL, NOBODY)

    assert isinstance(answer, Answered)
    assert [(seen.path, seen.headers["authorization"]) for seen in proxy.seen] == [
        ("/stripe/v1/charges", f"Bearer {TOKEN}")
    ]


@pytest.mark.parametrize(
    ("granted", "kind"),
    [(grants(*BOTH[1:]), NotOffered), (grants(*BOTH), Answered), (Says(drop=True), Unavailable)],
    ids=["another tool", "the tool", "nobody knows"],
)
def test_a_tool_that_the_key_does_not_grant_is_none(
    proxy: StubProxy, one_key: Billing, granted: Says, kind: type[Any]
) -> None:
    # The same refusal says that the customer is not the key's, where the tool is.
    proxy.on(POST, Says(403, refusal("vault_key_not_authorized")))
    proxy.on(KEY, granted)

    assert isinstance(call_tool(one_key, "charge", BILL, NOBODY), kind)


def test_a_key_that_was_rotated_is_read_once_more(proxy: StubProxy) -> None:
    tokens = iter(["vk_test_old", "vk_test_new"])
    one_key = Billing(lambda: next(tokens), NetworkLine(proxy.url))
    proxy.on(KEY, Says(401, refusal("vault_key_expired")), grants(*BOTH))

    assert one_key.wait(one_key.offered())[0] == {"charge", "charge_status"}
    assert [seen.headers["authorization"][-3:] for seen in proxy.seen] == ["old", "new"]
    one_key.close()
