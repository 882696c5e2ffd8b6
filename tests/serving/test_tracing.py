"""The trace of a request reaches Stripe, and nothing else of a client's does in its place."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.serving.process_setup import JsonLines, configure_logs
from kb_mcp.serving.tracing import Span, chosen_span, no_span, span_over
from kb_mcp.settings import load_settings
from kb_mcp.wiring.app import Agents
from kb_mcp.wiring.proxy import Proxy
from tests.agent.conftest import TRACE, Says, charge, serve_stub
from tests.asgi_transport import AsgiTransport
from tests.in_process_proxy import InProcessProxy
from tests.months import lately
from tests.proxy_processes import cluster

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORM = {"customer": "cus_A1", "amount": "2900", "currency": "usd",
        "metadata[billing_period]": lately("2026-11")}  # fmt: skip


class Watched(InProcessProxy):
    """A proxy whose sandbox notes the headers of every charge."""

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
            return Proxy(self.settings, noting, self.span)

        self.proxy = self.run(build())
        self.agents = Agents(self.proxy)
        transport = AsgiTransport(self.agents, self.loop)
        self.client = httpx.Client(transport=transport, base_url="http://127.0.0.1", timeout=60)


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path) as built:
        yield built


def sent(in_process: Watched, **headers: str) -> dict[bytes, bytes]:
    key = in_process.issue()
    named = {"Authorization": f"Bearer {key.token}", **headers}
    assert in_process.client.post("/v1/charges", data=FORM, headers=named).status_code == 200
    return in_process.seen[-1]


def test_a_trace_is_handed_on(in_process: Watched) -> None:
    seen = sent(in_process, traceparent=PARENT, tracestate="vendor=1")
    assert (seen[b"traceparent"], seen[b"tracestate"]) == (PARENT.encode(), b"vendor=1")


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", PARENT.upper(), PARENT + "0", PARENT.replace("00-", "ff-", 1),
     "00-" + "0" * 32 + "-b7ad6b7169203331-01"],
)  # fmt: skip
def test_what_is_no_trace_goes_nowhere(in_process: Watched, parent: str) -> None:
    seen = sent(in_process, traceparent=parent, tracestate="vendor=1")
    assert not {b"traceparent", b"tracestate"} & seen.keys()


def test_a_trace_ends_with_its_request(in_process: Watched) -> None:
    sent(in_process, traceparent=PARENT)
    key = in_process.issue()
    in_process.charge(key, customer="cus_B2", period="2026-11")
    assert b"traceparent" not in in_process.seen[-1]


BILL = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": lately("2026-11")}
META = {
    **TRACE,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def remembered() -> tuple[Any, Any]:
    """Return where spans are kept in memory, and the provider that keeps them there."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return memory, provider


def request_and_send(memory: Any) -> tuple[Any, Any]:
    """Return the spans of a charge and of its send, which is one below it."""
    spans = {each.name: each for each in memory.get_finished_spans()}
    request, send = spans["agent POST"], spans["stripe POST /v1/charges"]
    assert send.parent.span_id == request.context.span_id
    return request, send


def call_mcp(in_process: Watched) -> None:
    """Charge at `/mcp` with a trace in the message."""
    key = in_process.issue("billing-with-status")
    answer = in_process.charge_over_mcp(key, META)
    assert '"status":"succeeded"' in answer.text


def test_a_trace_goes_through_the_mcp_door_to_stripe(in_process: Watched) -> None:
    call_mcp(in_process)

    seen = in_process.seen[-1]
    assert (seen[b"traceparent"], seen[b"tracestate"]) == (PARENT.encode(), b"vendor=1")


def test_with_spans_it_is_one_trace_from_the_mcp_door_to_stripe(tmp_path: Path) -> None:
    memory, provider = remembered()
    with Watched(tmp_path, span_over(provider)) as in_process:
        call_mcp(in_process)
        seen = in_process.seen[-1]
    provider.shutdown()

    request, _ = request_and_send(memory)
    assert f"{request.parent.span_id:016x}" == PARENT[36:52]
    assert seen[b"traceparent"].decode()[3:35] == PARENT[3:35]


EMBEDDED = """
import json, sys
from kb_mcp.converse import ConverseTools
print(json.dumps(ConverseTools().handle(json.loads(sys.argv[1]), trace=json.loads(sys.argv[2]))))
"""


def test_a_trace_goes_through_an_embedded_proxy_to_stripe(tmp_path: Path) -> None:
    use = {"toolUseId": "t1", "name": "charge", "input": BILL}
    message = {"role": "assistant", "content": [{"toolUse": use}]}
    with serve_stub() as stripe, cluster(tmp_path) as place:
        stripe.on("POST /v1/charges", Says(200, charge(customer="cus_A1")))
        for listed in ("charges", "payment_intents", "refunds"):
            stripe.on(f"GET /v1/{listed}", Says(200, {"data": [], "has_more": False}))
        place.extra["KEYBRAKE_VAULT_KEY_BILLING"] = place.issue()
        environ = place.environ() | {"KEYBRAKE_STRIPE_API_BASE": stripe.url}
        done = subprocess.run(
            [sys.executable, "-c", EMBEDDED, json.dumps(message), json.dumps(TRACE)],
            env=environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 0, done.stderr
    sends = [seen for seen in stripe.seen if seen.method == "POST"]
    assert [seen.trace for seen in sends] == [TRACE], done.stdout


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
    memory, provider = remembered()
    with Watched(tmp_path, span_over(provider)) as in_process:
        seen = sent(in_process, traceparent=PARENT)
    provider.shutdown()
    request, send = request_and_send(memory)
    assert f"{request.parent.trace_id:032x}-{request.parent.span_id:016x}" == PARENT[3:52]
    assert seen[b"traceparent"].decode()[3:52] == (
        f"{send.context.trace_id:032x}-{send.context.span_id:016x}"
    )


def test_a_collector_without_the_extra_is_refused_by_name() -> None:
    settings = load_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    with pytest.raises(SettingsError, match=r"kb-mcp-billing\[otel\]"):
        chosen_span(settings)
    assert chosen_span(load_settings({})) is no_span
