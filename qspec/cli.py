"""What all programs share on their command lines: options read from the configuration, and how they end."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from qspec.config import StackConfig
from qspec.errors import QspecError
from qspec.log_format import add_log_arguments

EXIT_ERROR = 2
"""Exit code after a deliberate error (argparse uses the same for options that it cannot read)."""
EXIT_INTERRUPTED = 128 + signal.SIGINT


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each field of ``StackConfig``, with its default and its description."""
    group = parser.add_argument_group("stack")
    for field in fields(StackConfig):
        option = f"--{field.name.replace('_', '-')}"
        description = _descriptions()[field.name].replace("``", "").replace("%", "%%")
        if isinstance(field.default, bool):
            default = "yes" if field.default else "no"
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=field.default,
                help=f"{description} (default: {default})")
            continue
        group.add_argument(
            option, type=type(field.default), default=field.default,
            metavar=type(field.default).__name__.upper(), help=f"{description} (default: %(default)s)",
        )


def stack_config(args: argparse.Namespace) -> StackConfig:
    """The configuration that ``add_stack_arguments`` read; raises ``InvalidInput`` for values out of range."""
    return StackConfig(**{field.name: getattr(args, field.name) for field in fields(StackConfig)})


def stack_options(config: StackConfig) -> list[str]:
    """The command line that ``stack_config`` reads ``config`` from: what a parent gives its workers."""
    return [_option(field.name.replace("_", "-"), getattr(config, field.name)) for field in fields(StackConfig)]


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def add_process_arguments(parser: argparse.ArgumentParser, *, listen: str | None = None) -> None:
    """Options of a server process: where it listens (by default at ``listen``), and how it is tied to its parent."""
    group = parser.add_argument_group("process")
    group.add_argument("--listen", required=listen is None, default=listen, metavar="ADDRESS", help=(
        "unix:PATH or HOST:PORT to listen at" + ("" if listen is None else " (default: %(default)s)")
    ))
    group.add_argument("--runtime-dir", type=Path, metavar="DIRECTORY", help=(
        "directory for sockets, mode 0700 (default: that of the socket listened at); "
        "removed when the lifeline breaks"
    ))
    group.add_argument("--wait-for-model", type=float, default=0.0, metavar="SECONDS", help=(
        "time for the model's files to come where they are missing; NOT_SERVING meanwhile (default: %(default)s)"
    ))
    group.add_argument("--status-fd", type=int, metavar="N", help="descriptor to write JSON status lines to")
    group.add_argument("--lifeline-fd", type=int, metavar="N", help="pipe whose end means that the parent is gone")
    add_log_arguments(parser)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program and exit with its code; a deliberate error is one line on stderr, and none has a traceback."""
    try:
        code = main()
        sys.stdout.flush()
    except QspecError as error:
        sys.stderr.write(f"error: {error}\n")
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has left, as ``| head`` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


@lru_cache(maxsize=1)
def _descriptions() -> dict[str, str]:
    """The docstring below each field of ``StackConfig``, which Python itself does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(StackConfig))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in itertools.pairwise(definition.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(
            following, ast.Expr
        ) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found
