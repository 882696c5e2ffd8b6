"""The trace of a request reaches Stripe, and nothing else of a client's does in its place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typing_extensions import override

from kb_mcp.agent.transport import AsgiTransport
from kb_mcp.environment import SettingsError
from kb_mcp.proxy.ops.tracing import Span, no_span
from kb_mcp.settings import load_settings
from kb_mcp.wiring.app import Agents
from kb_mcp.wiring.logs import JsonLines, configure_logs
from kb_mcp.wiring.proxy import Proxy, build_proxy
from kb_mcp.wiring.telemetry import chosen_span, span_over
from tests.house import House

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORM = {"customer": "cus_A1", "amount": "2900", "currency": "usd",
        "metadata[billing_period]": "2026-11"}  # fmt: skip


class Watched(House):
    """A house whose sandbox notes the headers of every charge."""

    def __init__(self, folder: Path, span: Span = no_span) -> None:
        self.seen: list[dict[bytes, bytes]] = []
        self.span = span
        super().__init__(folder)

    @override
    def _open(self) -> None:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["method"] == "POST":
                self.seen.append(dict(scope["headers"]))
            await self.sandbox(scope, receive, send)

        async def build() -> Proxy:
            return build_proxy(self.settings, noting, self.span)

        self.proxy = self.run(build())
        transport = AsgiTransport(Agents(self.settings, self.proxy), self.loop)
        self.client = httpx.Client(transport=transport, base_url="http://127.0.0.1", timeout=60)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path) as built:
        yield built


def sent(house: Watched, **headers: str) -> dict[bytes, bytes]:
    key = house.issue()
    named = {"Authorization": f"Bearer {key.token}", **headers}
    assert house.client.post("/v1/charges", data=FORM, headers=named).status_code == 200
    return house.seen[-1]


def test_a_trace_is_handed_on(house: Watched) -> None:
    seen = sent(house, traceparent=PARENT, tracestate="vendor=1")
    assert (seen[b"traceparent"], seen[b"tracestate"]) == (PARENT.encode(), b"vendor=1")


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", PARENT.upper(), PARENT + "0", PARENT.replace("00-", "ff-", 1),
     "00-" + "0" * 32 + "-b7ad6b7169203331-01"],
)  # fmt: skip
def test_what_is_no_trace_goes_nowhere(house: Watched, parent: str) -> None:
    seen = sent(house, traceparent=parent, tracestate="vendor=1")
    assert not {b"traceparent", b"tracestate"} & seen.keys()


def test_a_trace_ends_with_its_request(house: Watched) -> None:
    sent(house, traceparent=PARENT)
    key = house.issue()
    house.charge(key, customer="cus_B2", period="2026-11")
    assert b"traceparent" not in house.seen[-1]


def test_a_log_line_is_one_json_object_without_keys() -> None:
    token = "vk_test_aaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbb"
    with pytest.raises(ValueError, match="second line") as caught:
        int(f"{token} second line")
    fault = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord(
        "kb_mcp.test", logging.ERROR, "x.py", 1, "refused\n%s", (token,), fault
    )
    line = JsonLines().format(record)
    document = json.loads(line)
    assert (document["level"], document["logger"]) == ("error", "kb_mcp.test")
    assert token not in line
    assert "\n" not in line
    assert "second line" in document["error"]


def test_configured_logs_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logs("json")
        logging.getLogger("kb_mcp.test").info("hello")
    finally:
        root.handlers[:], root.level = handlers, level
    said = capsys.readouterr()
    assert (said.out, json.loads(said.err)["message"]) == ("", "hello")


def test_a_request_is_a_span_and_its_send_one_below_it(tmp_path: Path) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with Watched(tmp_path, span_over(provider)) as house:
        seen = sent(house, traceparent=PARENT)
    provider.shutdown()
    spans = {each.name: each for each in memory.get_finished_spans()}
    send, request = spans["stripe POST /v1/charges"], spans["agent POST"]
    assert request.parent is not None
    assert send.parent is not None
    assert f"{request.parent.trace_id:032x}-{request.parent.span_id:016x}" == PARENT[3:52]
    assert send.context is not None
    assert request.context is not None
    assert send.parent.span_id == request.context.span_id
    assert seen[b"traceparent"].decode()[3:52] == (
        f"{send.context.trace_id:032x}-{send.context.span_id:016x}"
    )


def test_a_collector_without_the_extra_is_refused_by_name() -> None:
    settings = load_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    with pytest.raises(SettingsError, match=r"kb-mcp\[otel\]"):
        chosen_span(settings)
    assert chosen_span(load_settings({})) is no_span
