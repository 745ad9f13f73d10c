"""Log lines for people and for machines."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from qspec.log_format import (
    JsonFormatter,
    TextFormatter,
    add_log_arguments,
    configure_logging,
    frames_of,
    log_options,
)
from qspec.status import Status


def record(message: str, *arguments: object, **attributes: object) -> logging.LogRecord:
    made = logging.LogRecord("qspec.requests", logging.INFO, "file.py", 1, message, arguments, None)
    made.__dict__.update(attributes)
    return made


def parsed(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_log_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_record_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record("ended in\n%d s", 3, facts={"request_id": "a\nb", "drafted": 5}, created=0.25))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00", "level": "info", "logger": "qspec.requests",
        "message": "ended in\n3 s", "request_id": "a\nb", "drafted": 5}


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("planted")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "ValueError: planted" in json.loads(line)["exception"]


def test_people_read_facts_behind_the_text() -> None:
    assert TextFormatter().format(record("request ended", facts={"request_id": "a", "rounds": 2})) == (
        "qspec.requests: request ended request_id=a rounds=2")
    assert TextFormatter().format(record("verifier attached")) == "qspec.requests: verifier attached"


def test_frames_tell_class_and_place_and_none_of_the_words() -> None:
    def quote(text: str) -> None:
        try:
            int(text)
        except ValueError as error:
            raise RuntimeError(f"cannot read {text}") from error

    with pytest.raises(RuntimeError) as raised:
        quote("CANARY")
    told = frames_of(raised.value)
    assert "RuntimeError" in told and "ValueError" in told and "in quote" in told
    assert "CANARY" not in told


def test_options_reach_the_children() -> None:
    args = parsed("--log-format=json", "--log-level=info")
    assert parsed(*log_options(args)) == args
    assert vars(parsed()) == {"log_format": "text", "log_level": "warning"}


def test_a_machine_reads_the_status_too(
    capsys: pytest.CaptureFixture[str], untouched_logging: None
) -> None:
    configure_logging(parsed("--log-format=json", "--log-level=info"))
    status = Status(None, as_log=True)
    status.stage("loading weights", 0.5)
    status.ready("unix:/x")
    status.error(ValueError("no such model"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "loading weights"), ("info", "serving at unix:/x"), ("error", "no such model")]
