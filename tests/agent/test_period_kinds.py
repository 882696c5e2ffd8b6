"""The tool's text names the kinds of period that its key may bill, as the proxy tells them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName, select_tools
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.doors.mcp.bearer import Known, look_up
from kb_mcp.agent.export import arguments_schema
from kb_mcp.converse import ConverseTools
from kb_mcp.periods import KINDS
from tests.agent.conftest import Says, StubProxy
from tests.agent.doors.conftest import ask, door

__all__ = ["door"]

KEY = "GET /keybrake/v1/key"
BOTH = frozenset(ToolName)


def text(*kinds: str, tool: str = "charge") -> str:
    tools = select_tools(BOTH, allow_reference=False, period_kinds=kinds)
    (found,) = [each for each in tools if each.name == tool]
    return str(arguments_schema(found)["properties"]["billing_period"]["description"])


def policy(**fields: Any) -> Says:
    return Says(200, {"id": "k1", "policy": {"allow": ["POST /v1/charges"], **fields}})


@pytest.fixture
def billing(proxy: StubProxy) -> Iterator[Billing]:
    held = Billing("vk_test_x", NetworkLine(proxy.url))
    yield held
    held.close()


def test_the_text_names_what_is_allowed_and_leaves_the_rest_out() -> None:
    both = text("quarter", "month")
    assert "a quarter (2026-Q2) or a month (2026-06), and nothing else" in both
    assert "2026-W23" not in both
    assert "never invent one" in both
    for kind in KINDS:
        assert text(kind) != text()
    # What is new to this version is the proxy's to refuse.
    assert text("fortnight") == text()
    assert text("month", tool="charge_status") == text(tool="charge_status")


@pytest.mark.parametrize(
    ("says", "kinds"),
    [
        (policy(period_kinds=["month"]), ("month",)),
        (policy(), ()),
        (policy(period_kinds="month"), ()),
        (policy(period_kinds=[1, "day"]), ("day",)),
    ],
)
def test_the_proxy_tells_the_kinds_with_the_tools(
    proxy: StubProxy, billing: Billing, says: Says, kinds: tuple[str, ...]
) -> None:
    proxy.on(KEY, says)
    assert billing.wait(billing.offered()) == (frozenset({ToolName.CHARGE}), kinds)


def test_a_key_for_charge_alone_is_not_asked_about(proxy: StubProxy) -> None:
    held = Billing({ToolName.CHARGE: "vk_test_x"}, NetworkLine(proxy.url))
    assert held.wait(held.offered()) == (frozenset({ToolName.CHARGE}), ())
    assert not proxy.seen
    held.close()


def test_over_http_the_bearer_brings_its_kinds(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(KEY, policy(period_kinds=["month"]))
    known = billing.wait(look_up(billing, "vk_test_y", CallContext()))
    assert isinstance(known, Known)
    asked = len(proxy.seen)
    assert billing.wait(known.billing.offered())[1] == ("month",)
    assert len(proxy.seen) == asked


def test_a_converse_request_carries_the_text(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(KEY, policy(period_kinds=["month"]))
    (tool,) = ConverseTools(billing=billing).tool_config()["tools"]
    schema = tool["toolSpec"]["inputSchema"]["json"]
    assert schema["properties"]["billing_period"]["description"] == text("month")


def test_an_mcp_client_reads_the_kinds_of_its_bearer(proxy: StubProxy, door: httpx.Client) -> None:
    proxy.on(KEY, policy(period_kinds=["month"]))
    listed = ask(door, "tools/list", {}, modern=True)["result"]["tools"]
    schema = next(each["inputSchema"] for each in listed if each["name"] == "charge")
    told = schema["properties"]["billing_period"]["description"]
    assert told == text("month")
    # Another bearer is told of its own kinds.
    proxy.on(KEY, policy())
    (plain,) = ask(door, "tools/list", {}, modern=True)["result"]["tools"]
    assert plain["inputSchema"]["properties"]["billing_period"]["description"] == text()
