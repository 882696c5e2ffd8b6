"""Traces: the W3C trace context of an agent's request, handed on to Stripe, and spans about it.

Floor: serving, around the application and around the client; put there in wiring. What does not
have the form of the standard is dropped (traces). Spans are OpenTelemetry's, where the extra `otel`
is installed and a collector is named (OTEL_EXPORTER_OTLP_ENDPOINT); the other standard OTEL_*
variables are OpenTelemetry's own to read. Without one nothing is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from msgspec.structs import replace
from typing_extensions import override

from kb_mcp.environment import SettingsError
from kb_mcp.in_process import AsgiApp, Message, Receive, Send
from kb_mcp.proxy.stripe.messages import Upstream, UpstreamAnswer, UpstreamRequest
from kb_mcp.settings import Settings
from kb_mcp.traces import PARENT, STATE, read_trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


SERVICE = "kb-mcp"


def chosen_span(settings: Settings) -> Span:
    """Return what records spans by OTLP over HTTP, or what records nothing.

    Raises: SettingsError, where a collector is named and the extra is not installed.
    """
    return _exported() if settings.export_traces else no_span


def span_over(provider: TracerProvider) -> Span:
    """Return what records spans with `provider`."""
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("kb_mcp")
    propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(name: str, trace: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        kind = SpanKind.CLIENT if name.startswith("stripe") else SpanKind.SERVER
        begun = tracer.start_span(name, context=propagator.extract(dict(trace)), kind=kind)
        inside: dict[str, str] = {}
        propagator.inject(inside, set_span_in_context(begun))
        try:
            yield inside
        finally:
            begun.end()

    return span


@cache
def _exported() -> Span:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        hint = "pip install 'kb-mcp-billing[otel]', or leave the variable out."
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise SettingsError(name, "is set, but OpenTelemetry is not installed", hint) from None

    # Resource.create lets OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return span_over(provider)


_current: ContextVar[Mapping[str, str]] = ContextVar("keybrake_trace")
# Begins a span of that name under a trace, and yields the trace of what happens inside it.
Span = Callable[[str, Mapping[str, str]], AbstractContextManager[Mapping[str, str]]]


def trace_of(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the trace context in raw headers, or nothing where it is absent or not well formed."""
    given = {name: [text for n, text in headers if n == name.encode()] for name in (PARENT, STATE)}
    once = {name: each[0].decode("latin-1") for name, each in given.items() if len(each) == 1}
    trace = read_trace(once)
    return trace.headers() if trace else {}


def no_span(_name: str, trace: Mapping[str, str]) -> AbstractContextManager[Mapping[str, str]]:
    """Record nothing, and hand the trace on as it came."""
    return nullcontext(trace)


def traced(app: AsgiApp, span: Span) -> AsgiApp:
    """Return `app`, whose requests carry their trace to whatever they cause."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        # Clients choose their paths: a span's name holds none of it.
        with span(f"agent {scope['method']}", trace_of(scope["headers"])) as trace:
            # Tasks begun for this request copy it; the next request sets its own.
            _current.set(trace)
            await app(scope, receive, send)

    return serve


@dataclass(frozen=True, slots=True)
class TracedUpstream(Upstream):
    """A way to Stripe that hands on the trace of the request it serves."""

    upstream: Upstream
    span: Span

    @override
    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        # The resource, like /v1/charges; whose it is stays out of the name.
        resource = "/".join(request.path.partition("?")[0].split("/")[:3])
        with self.span(f"stripe {request.method} {resource}", _current.get({})) as trace:
            traced = replace(request, trace=trace) if trace else request
            return await self.upstream.send(traced, deadline_ms=deadline_ms)

    @override
    async def aclose(self) -> None:
        await self.upstream.aclose()
