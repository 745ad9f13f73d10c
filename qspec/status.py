"""How a process tells its parent what it is doing.

Started with ``--status-fd N``, a process writes one JSON object per line to that descriptor: stages of loading, that it
is ready and where, or why it cannot be. Without one it tells the person at the terminal the same on stderr, or logs it
where somebody's machine reads that (``as_log``). The parent reads the lines with ``read_events``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qspec.errors import ContractViolation, FieldViolation, InvalidInput

logger = logging.getLogger(__name__)


class EventKind(Enum):
    """What a line says."""

    STAGE = "stage"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusEvent:
    """One line. Which fields are set depends on ``kind``: STAGE has text and maybe fraction, READY has address and
    detail, ERROR has text and violations."""

    kind: EventKind
    text: str = ""
    fraction: float | None = None
    address: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()


class Status:
    """Tells a parent, or a person. May be called from any thread; a parent that is gone is no reason to fail."""

    def __init__(self, fd: int | None, *, as_log: bool = False) -> None:
        """``as_log``: what a person would be told is logged instead, the stages and readiness at level info."""
        self._fd = fd
        self._as_log = as_log
        self._lock = threading.Lock()
        self._last_stage = ""

    def stage(self, text: str, fraction: float | None = None) -> None:
        """A stage of loading; ``fraction`` of it that is done, 0 to 1, where that is known."""
        news = text if text != self._last_stage else ""  # a person needs no line for every percent
        self._last_stage = text
        self._tell({"event": "stage", "text": text, "fraction": fraction}, news)

    def ready(self, address: str, **detail: Any) -> None:
        """The server at ``address`` is SERVING; ``detail`` is JSON-able."""
        self._tell({"event": "ready", "address": address, "detail": detail}, f"serving at {address}")

    def error(self, error: Exception) -> None:
        """The process cannot go on."""
        text = (str(error) or type(error).__name__).splitlines()
        violations = error.violations if isinstance(error, InvalidInput) else ()
        self._tell(
            {
                "event": "error",
                "text": "\n".join(text),
                "violations": [{"field": v.field, "description": v.description} for v in violations],
            },
            "\n".join([f"error: {text[0]}", *text[1:]]),
        )

    def _tell(self, event: dict[str, Any], line: str) -> None:
        with self._lock:
            if self._fd is None:
                if line and self._as_log:
                    error = event["event"] == EventKind.ERROR.value
                    logger.log(logging.ERROR if error else logging.INFO, line.removeprefix("error: "))
                elif line:
                    sys.stderr.write(f"{line}\n")
                return
            data = memoryview((json.dumps(event) + "\n").encode())
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # the parent is gone; the lifeline deals with that
                self._fd = None


def read_events(stream: Iterable[bytes]) -> Iterator[StatusEvent]:
    """The events of a child, from the reading end of its status pipe (a binary file); ends when the child does.

    Raises ``ContractViolation`` for a line that is no event. A last line that was cut off by the child's death is left
    out.
    """
    for line in stream:
        if not line.endswith(b"\n"):
            return
        try:
            yield _parse(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ContractViolation(f"no status event: {line[:200]!r}") from error


def _parse(record: dict[str, Any]) -> StatusEvent:
    kind = EventKind(record["event"])
    if kind is EventKind.STAGE:
        return StatusEvent(kind=kind, text=str(record["text"]), fraction=record["fraction"])
    if kind is EventKind.READY:
        return StatusEvent(kind=kind, address=str(record["address"]), detail=dict(record["detail"]))
    violations = tuple(FieldViolation(v["field"], v["description"]) for v in record["violations"])
    return StatusEvent(kind=kind, text=str(record["text"]), violations=violations)
