"""Whether calls are traced, and where to: ``--trace-endpoint``, or the environment variables of OpenTelemetry.

Off unless one of them says so. The packages belong to the extra ``tracing`` and are imported here and nowhere earlier.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from urllib.parse import urlsplit

from coordinator.tracing.tracer import Tracer, Untraced
from qspec.errors import InvalidInput

logger = logging.getLogger("qspec.tracing")

OPTION = "trace_endpoint"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
DEFAULT_ENDPOINT = "http://localhost:4317"
"""Of OpenTelemetry, where only the exporter is named."""


def trace_endpoint(option: str | None, environment: Mapping[str, str]) -> str | None:
    """The URL to send traces to; None: nobody asked for traces. ``InvalidInput`` for what cannot be done."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if option is not None:
        return _checked_url(option, OPTION)
    exporter = environment.get(_EXPORTER, "").strip().lower()
    name = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if exporter == "none" or (not exporter and name is None):
        return None
    if exporter not in ("", "otlp"):
        raise InvalidInput.field(_EXPORTER, f"this server knows otlp and none, got {exporter!r}")
    for protocol in _PROTOCOLS:
        if environment.get(protocol, "grpc") != "grpc":
            raise InvalidInput.field(protocol, f"this server sends traces by grpc only, got {environment[protocol]!r}")
    return DEFAULT_ENDPOINT if name is None else _checked_url(environment[name], name)


def make_tracer(option: str | None, environment: Mapping[str, str]) -> Tracer:
    """The tracer that was asked for.

    What keeps it from working is an error where the option asks, and a warning where the environment does, which may
    have been made for other programs.
    """
    try:
        endpoint = trace_endpoint(option, environment)
        return Untraced() if endpoint is None else _open_telemetry(endpoint, environment)
    except InvalidInput as error:
        if option is not None:
            raise
        logger.warning("no traces, for which the environment asks: %s", error)
        return Untraced()


def _open_telemetry(endpoint: str, environment: Mapping[str, str]) -> Tracer:
    try:
        from coordinator.tracing.open_telemetry import open_telemetry_tracer
    except ImportError:
        text = "traces need packages that are not installed; run: pip install 'qspec-serve[tracing]'"
        raise InvalidInput.field(OPTION, text) from None
    try:
        return open_telemetry_tracer(endpoint, environment)
    except ValueError as error:
        raise InvalidInput.field("OTEL_…", f"OpenTelemetry cannot read a value in the environment: {error}") from None


def _checked_url(text: str, field: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput.field(field, f"{text!r} is no collector's address; write http://HOST:PORT, or https for TLS")
    return text
