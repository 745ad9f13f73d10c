"""What the programs log, for people or for machines: one line a record, or one JSON object a line.

The standard library's logging with a formatter of our own, which needs no package: a record's facts (``facts`` in its
``extra``) follow the text as ``name=value``, or are fields of the object beside time, level, logger and message.
A library for structured logs would bring processors and bound loggers, of which nothing here has a use.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import datetime, timezone
from enum import Enum
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "warning"


class LogFormat(Enum):
    """How records are written."""

    TEXT = "text"
    JSON = "json"


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every server program has."""
    group = parser.add_argument_group("log")
    group.add_argument("--log-format", choices=[each.value for each in LogFormat], default=LogFormat.TEXT.value, help=(
        "on stderr: lines for people, or one JSON object a line (default: %(default)s)"
    ))
    group.add_argument("--log-level", choices=LEVELS, default=DEFAULT_LEVEL, help=(
        "least level that is logged; requests are at info, without prompts and texts (default: %(default)s)"
    ))


def log_options(args: argparse.Namespace) -> list[str]:
    """The command line that ``add_log_arguments`` reads ``args`` from: what a parent gives its workers."""
    return [f"--log-format={args.log_format}", f"--log-level={args.log_level}"]


def configure_logging(args: argparse.Namespace) -> None:
    """Log to stderr as ``args`` say; replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if LogFormat(args.log_format) is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=args.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(LogFormat(args.log_format) is LogFormat.JSON)


class TextFormatter(logging.Formatter):
    """``logger: message name=value …``"""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the base class's name
        """The line, without a traceback."""
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
        return f"{super().formatMessage(record)} {facts}".rstrip()


class JsonFormatter(logging.Formatter):
    """One object a line, with the time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is the field ``exception``."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = getattr(record, "facts", {})
    return facts


def frames_of(error: BaseException) -> str:
    """Where an error came from, and its class: all that may be told of it where its text may quote a request."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(type(cause).__name__)
        trace = cause.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
            trace = trace.tb_next
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(lines)
