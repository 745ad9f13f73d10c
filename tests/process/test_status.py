"""Status lines: what a child writes, its parent reads."""

from __future__ import annotations

import os

import pytest

from qspec.errors import ContractViolation, FieldViolation, InvalidInput, QspecError
from qspec.status import EventKind, Status, StatusEvent, read_events


def test_events_cross_a_pipe() -> None:
    reading, writing = os.pipe()
    status = Status(writing)
    status.stage("loading weights", 0.5)
    status.stage("probing\nrow tiles")
    status.ready("unix:/x", epoch=3)
    status.error(InvalidInput(FieldViolation("model", "not found")))
    status.error(QspecError("lost"))
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        events = list(read_events(stream))
    assert events == [
        StatusEvent(kind=EventKind.STAGE, text="loading weights", fraction=0.5),
        StatusEvent(kind=EventKind.STAGE, text="probing\nrow tiles"),
        StatusEvent(kind=EventKind.READY, address="unix:/x", detail={"epoch": 3}),
        StatusEvent(
            kind=EventKind.ERROR, text="model: not found", violations=(FieldViolation("model", "not found"),)
        ),
        StatusEvent(kind=EventKind.ERROR, text="lost"),
    ]


def test_without_a_parent_a_person_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    status = Status(None)
    status.stage("loading weights", 0.5)
    status.stage("loading weights", 1.0)
    status.stage("probing row tiles")
    status.ready("unix:/x", epoch=3)
    status.error(InvalidInput(FieldViolation("model", "not found")))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "loading weights\nprobing row tiles\nserving at unix:/x\nerror: model: not found\n"


def test_a_parent_that_is_gone_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        Status(writing).stage("loading")
    finally:
        os.close(writing)
    assert "Traceback" not in capsys.readouterr().err


def test_a_line_cut_off_is_left_out() -> None:
    assert list(read_events([b'{"event":"stage","text":"a","fraction":null}\n', b'{"event":"sta'])) == [
        StatusEvent(kind=EventKind.STAGE, text="a")
    ]


@pytest.mark.parametrize("line", [b"\n", b"Traceback\n", b"[]\n", b'{"event":"other"}\n', b'{"event":"ready"}\n'])
def test_what_is_no_event(line: bytes) -> None:
    with pytest.raises(ContractViolation, match="no status event"):
        list(read_events([line]))
