"""Command lines of manifests and images, read by the programs' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import coordinator.__main__
import drafter.__main__
import verifier.__main__
from qspec.cli import stack_config

COMMAND_LINES: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "coordinator": coordinator.__main__.command_line,
    "drafter": drafter.__main__.command_line,
    "verifier": verifier.__main__.command_line,
}


def parse(program: str, given: Sequence[str]) -> argparse.Namespace:
    """The options as ``program`` reads them, values checked; fails for what it would refuse."""
    args = COMMAND_LINES[program]().parse_args(list(given))
    stack_config(args)
    return args
