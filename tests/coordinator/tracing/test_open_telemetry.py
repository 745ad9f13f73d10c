"""Spans of calls over a real socket, with an exporter in memory; and a collector that is not there."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

pytest.importorskip("opentelemetry.sdk", reason="traces need the extra 'tracing'")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from coordinator.telemetry import Telemetry
from coordinator.tracing.open_telemetry import CLOSE_S, OpenTelemetryTracer, open_telemetry_tracer
from coordinator.tracing.patient_exporter import PatientExporter
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.test_service import served
from tests.fakes import FakeDrafter, FakeVerifier

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALL = "qspec.v1.GenerationService/Generate"


class Traced:
    """A tracer whose spans are kept."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.telemetry = Telemetry(OpenTelemetryTracer(provider))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (found,) = (span for span in self.spans if span.name == name)
        return found


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_call_continues_its_caller_s_trace_and_tells_where_the_time_went(tmp_path: Path) -> None:
    traced = Traced()

    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.002)
        async with served(tmp_path, verifier, FakeDrafter(verifier), telemetry=traced.telemetry) as (stub, _, _):
            request = pb.GenerateRequest(text="1 2 3", max_tokens=20, draft_length=4, request_id="mine")
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            last = [piece async for piece in stub.Generate(request, metadata=metadata)][-1]
            while len(traced.spans) < 5:
                await asyncio.sleep(0.005)
            call, text = traced.span(CALL), traced.span("text")
            assert call.parent is not None and f"{call.parent.span_id:016x}" == PARENT
            assert {f"{span.context.trace_id:032x}" for span in traced.spans} == {TRACE}
            assert text.parent == call.context
            parts = [traced.span(name) for name in ("queue", "prefill", "decode")]
            assert all(part.parent == text.context for part in parts)
            assert sum(map(seconds, parts)) == pytest.approx(seconds(text), abs=1e-6)
            assert seconds(parts[0]) + seconds(parts[1]) == pytest.approx(last.usage.time_to_first_token_s, abs=1e-6)
            assert seconds(text) == pytest.approx(last.usage.total_s, abs=1e-6)
            assert text.attributes is not None and text.attributes["gen_ai.request.id"] == "mine"
            assert text.attributes["gen_ai.usage.output_tokens"] == 20
            decode = parts[2].attributes
            assert decode is not None
            assert (decode["qspec.drafted"], decode["qspec.accepted"]) == (
                last.speculation.drafted, last.speculation.accepted)
            assert decode["qspec.verify_s"] == last.speculation.verify_s
            assert call.status.status_code is StatusCode.UNSET
            assert call.start_time is not None and abs(call.start_time / 1e9 - time.time()) < 20
    run(test)


def test_a_refused_call_says_why_and_none_of_its_words(tmp_path: Path) -> None:
    traced = Traced()

    async def test() -> None:
        async with served(tmp_path, FakeVerifier(), telemetry=traced.telemetry) as (stub, _, _):
            with pytest.raises(grpc.aio.AioRpcError):
                [piece async for piece in stub.Generate(pb.GenerateRequest(text="1 canary-word"))]
            with pytest.raises(grpc.aio.AioRpcError):
                [piece async for piece in stub.Generate(pb.GenerateRequest(text="1", stop=["canary-word"] * 40))]
    run(test)
    assert [(span.attributes or {})["error.type"] for span in traced.spans] == ["internal", "invalid_argument"]
    assert all(span.status.status_code is StatusCode.ERROR for span in traced.spans)
    assert "canary-word" not in "".join(span.to_json() for span in traced.spans)


def test_a_client_that_goes_ends_its_spans_without_an_error(tmp_path: Path) -> None:
    traced = Traced()

    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.005), telemetry=traced.telemetry) as (stub, _, engine):
            call = stub.Generate(pb.GenerateRequest(text="1 2 3", max_tokens=200, n=2))
            await call.read()
            call.cancel()
            while engine.active or not any(span.name == CALL for span in traced.spans):
                await asyncio.sleep(0.005)
    run(test)
    texts = [span for span in traced.spans if span.name == "text"]
    assert len(texts) == 2
    assert all((span.attributes or {})["error.type"] == "cancelled" for span in texts)
    assert all(span.status.status_code is StatusCode.UNSET for span in traced.spans)


class SometimesThere(InMemorySpanExporter):
    """A collector that takes spans or does not."""

    there = False

    def export(self, spans: object) -> SpanExportResult:  # type: ignore[override]
        return SpanExportResult.SUCCESS if self.there else SpanExportResult.FAILURE


def test_a_collector_that_goes_and_comes_is_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    inner = SometimesThere()
    exporter = PatientExporter(inner, "http://collector:4317")
    with caplog.at_level(logging.WARNING):
        for there in (False, False, True, True, False):
            inner.there = there
            exporter.export([])
    lost = "the collector at http://collector:4317 does not take traces; they are dropped"
    assert [message[: len(lost)] for message in caplog.messages] == [
        lost, "the collector at http://collector:4317 takes traces again", lost]


class HangingProvider(TracerProvider):
    """Its last spans are never sent."""

    released = threading.Event()

    def shutdown(self) -> None:
        self.released.wait(30)


def test_the_last_spans_get_a_bounded_time() -> None:
    tracer = OpenTelemetryTracer(HangingProvider(shutdown_on_exit=False))
    started = time.monotonic()
    tracer.close()
    assert time.monotonic() - started < 2 * CLOSE_S
    HangingProvider.released.set()


def test_an_unreachable_collector_is_one_line_and_holds_nothing_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr("coordinator.tracing.open_telemetry._EXPORT_TIMEOUT_S", 0.5)
    tracer = open_telemetry_tracer("http://127.0.0.1:9", {})

    async def test() -> None:
        async with served(tmp_path, FakeVerifier(), telemetry=Telemetry(tracer)) as (stub, _, _):
            for _ in range(3):
                pieces = [piece async for piece in stub.Generate(pb.GenerateRequest(text="1 2", max_tokens=5))]
                assert sum(len(piece.token_ids) for piece in pieces) == 5
                await asyncio.sleep(0.3)
            while not caplog.messages:
                await asyncio.sleep(0.05)

    with caplog.at_level(logging.WARNING):
        run(test)
        tracer.close()
    (line,) = caplog.messages
    assert line.startswith("the collector at http://127.0.0.1:9 does not take traces")
