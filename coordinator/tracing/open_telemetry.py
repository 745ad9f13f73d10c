"""Traces by OpenTelemetry: a span for a call, one for each of its texts, and what a text's time went to.

    qspec.v1.GenerationService/Generate     continues the caller's trace (``traceparent`` in the call's metadata)
      └ text                                from being queued to its end
          ├ queue                           until it had a slot
          ├ prefill                         until its first token
          └ decode                          until its last one; rounds, drafts, and the time of draft, verify and RPC

A text's spans are made when it has ended, out of times that were taken anyway: rounds know nothing of traces. Names of
attributes are OpenTelemetry's for RPC and for generative models where it has one. No prompt and no text is in a span.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from coordinator.outcome import CANCELLED, reason_of
from coordinator.stream import Stream
from coordinator.tracing.patient_exporter import PatientExporter
from coordinator.tracing.tracer import Metadata
from coordinator.version import package_version

SERVICE, METHOD = "qspec.v1.GenerationService", "Generate"
CLOSE_S = 2.0
"""Seconds that the last spans get to be sent."""
_EXPORT_TIMEOUT_S = 5.0
_TIMEOUTS = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"}


class OpenTelemetryTracer:
    """A ``Tracer`` over OpenTelemetry's SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("qspec", package_version())

    def call(self, metadata: Metadata) -> OpenTelemetryCall:
        """See ``Tracer``."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{SERVICE}/{METHOD}", context=propagate.extract(carrier), kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": METHOD})
        return OpenTelemetryCall(self._tracer, span)

    def close(self) -> None:
        """See ``Tracer``."""
        closing = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class OpenTelemetryCall:
    """A ``CallTrace``: the span of a call."""

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    def refused(self, reason: str) -> None:
        """See ``CallTrace``."""
        _fail(self._span, reason)
        self._span.end()

    def close(self) -> None:
        """See ``CallTrace``."""
        if self._span.is_recording():
            self._span.end()

    def text_ended(self, stream: Stream) -> None:
        """See ``CallTrace``."""
        if not self._span.get_span_context().trace_flags.sampled:
            return
        times, sequence, now = stream.generation.times, stream.generation.sequence, time.perf_counter()
        stats, outcome = sequence.stats, stream.ending.reason.value if stream.ending else reason_of(stream.error)
        since_epoch = time.time() - now
        parent = trace.set_span_in_context(self._span)
        text = self._tracer.start_span("text", parent, start_time=_nanoseconds(times.queued + since_epoch), attributes={
            "gen_ai.request.id": stream.request_id,
            "gen_ai.request.max_tokens": sequence.max_tokens,
            "gen_ai.response.finish_reasons": (outcome,),
            "gen_ai.usage.input_tokens": sequence.prompt_len,
            "gen_ai.usage.output_tokens": len(sequence.tokens) - sequence.prompt_len,
            "qspec.choice": sequence.sampling.choice,
            "qspec.recomputations": stats.recomputations,
        })
        if stream.ending is None:
            for span in (text, self._span):
                _fail(span, outcome)
        end = times.last_token if stream.ending is not None and times.last_token is not None else now
        begun, first = times.begun, times.first_token
        phases = [("queue", times.queued, begun), ("prefill", begun, first), ("decode", first, None)]
        for name, started, ended in phases:
            if started is None:
                continue
            span = self._tracer.start_span(
                name, trace.set_span_in_context(text), start_time=_nanoseconds(started + since_epoch))
            if name == "decode":
                span.set_attributes({
                    "qspec.rounds": stats.rounds, "qspec.drafted": stats.drafted, "qspec.accepted": stats.accepted,
                    "qspec.draft_s": stats.draft_s, "qspec.verify_s": stats.verify_s, "qspec.rpc_s": stats.rpc_s,
                })
            span.end(_nanoseconds((end if ended is None else ended) + since_epoch))
        text.end(_nanoseconds(end + since_epoch))


def open_telemetry_tracer(endpoint: str, environment: Mapping[str, str]) -> OpenTelemetryTracer:
    """Sends spans to ``endpoint`` from a thread of its own; sampler, headers and resource are the environment's."""
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    attributes = {"service.version": package_version()} | ({} if named else {"service.name": "qspec"})
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    timeout_s = None if _TIMEOUTS & environment.keys() else _EXPORT_TIMEOUT_S
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http:"), timeout=timeout_s)
    provider.add_span_processor(BatchSpanProcessor(PatientExporter(exporter, endpoint)))
    return OpenTelemetryTracer(provider)


def _fail(span: Span, reason: str) -> None:
    span.set_attribute("error.type", reason)
    if reason != CANCELLED:
        span.set_status(Status(StatusCode.ERROR, reason))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
