"""When calls are traced, and what cannot be asked for."""

from __future__ import annotations

import logging
import sys

import pytest

from coordinator.tracing.settings import DEFAULT_ENDPOINT, make_tracer, trace_endpoint
from coordinator.tracing.tracer import Untraced
from qspec.errors import InvalidInput

OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(("option", "environment", "endpoint"), [
    (None, {}, None),
    ("http://collector:4317", {}, "http://collector:4317"),
    (None, {OTLP: "http://collector:4317"}, "http://collector:4317"),
    (None, {OTLP: "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://b:2"}, "https://b:2"),
    ("http://option:1", {OTLP: "http://a:1"}, "http://option:1"),
    (None, {"OTEL_TRACES_EXPORTER": "otlp"}, DEFAULT_ENDPOINT),
    (None, {"OTEL_TRACES_EXPORTER": "none", OTLP: "http://a:1"}, None),
    ("http://option:1", {"OTEL_SDK_DISABLED": "true"}, None),
    (None, {OTLP: ""}, None),
    (None, {"OTEL_SERVICE_NAME": "mine"}, None),
])
def test_where_traces_go(option: str | None, environment: dict[str, str], endpoint: str | None) -> None:
    assert trace_endpoint(option, environment) == endpoint


@pytest.mark.parametrize(("option", "environment", "message"), [
    ("collector:4317", {}, "trace_endpoint: 'collector:4317' is no collector's address"),
    ("", {}, "trace_endpoint: '' is no collector's address"),
    ("http://collector", {}, "trace_endpoint: .* write http://HOST:PORT"),
    ("http://collector:x", {}, "trace_endpoint: .* write http://HOST:PORT"),
    (None, {OTLP: "grpc://a:1"}, f"{OTLP}: 'grpc://a:1' is no collector's address"),
    (None, {"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: this server knows otlp and none, got 'zipkin'"),
    (None, {OTLP: "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
     "OTEL_EXPORTER_OTLP_PROTOCOL: this server sends traces by grpc only"),
])
def test_what_cannot_be_done_is_one_line(option: str | None, environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{message}") as raised:
        trace_endpoint(option, environment)
    assert "\n" not in str(raised.value)


def test_missing_packages_are_an_error_for_an_option_and_a_warning_for_the_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "coordinator.tracing.open_telemetry", None)
    with pytest.raises(InvalidInput, match=r"trace_endpoint: .* pip install 'qspec-serve\[tracing\]'"):
        make_tracer("http://collector:4317", {})
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_tracer(None, {OTLP: "http://collector:4317"}), Untraced)
    (line,) = caplog.messages
    assert line.startswith("no traces, for which the environment asks:") and "qspec-serve[tracing]" in line


@pytest.mark.parametrize("environment", [
    {"OTEL_TRACES_EXPORTER": "zipkin"},
    {OTLP: "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    {OTLP: "nowhere"},
    {OTLP: "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "soon"},
])
def test_an_environment_made_for_others_is_a_warning(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="traces need the extra 'tracing'")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_tracer(None, environment), Untraced)
    (line,) = caplog.messages
    assert line.startswith("no traces, for which the environment asks:")
