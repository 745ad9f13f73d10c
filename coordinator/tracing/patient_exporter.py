"""An exporter that says once that its collector cannot be reached, and once that it can again.

The library's own logs each batch that it cannot deliver, and each attempt. Traces that are not delivered are dropped;
nothing else depends on them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger("qspec.tracing")
_NOISY = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")


class PatientExporter(SpanExporter):
    """Hands spans to ``inner``, which sends them to ``endpoint``."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._failing = False
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send, and say so when that begins or ceases to fail."""
        result = self._inner.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            logger.warning(
                "the collector at %s does not take traces; they are dropped until it does, nothing else is affected",
                self._endpoint)
        elif self._failing and not failing:
            logger.warning("the collector at %s takes traces again", self._endpoint)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """See ``SpanExporter``."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See ``SpanExporter``."""
        return self._inner.force_flush(timeout_millis)
