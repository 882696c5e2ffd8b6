"""OpenTelemetry: spans of requests and sends, where the extra `otel` is installed.

Floor: serving. Naming a collector (OTEL_EXPORTER_OTLP_ENDPOINT) turns it on; the other standard
OTEL_* variables are OpenTelemetry's own to read. Without one nothing is imported, and traces pass
as they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from kb_mcp.environment import SettingsError
from kb_mcp.serving.tracing import Span, no_span
from kb_mcp.settings import Settings

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
