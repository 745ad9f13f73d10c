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
WAITED_FOR = {"--device=cuda"}
"""Options that no program has yet, and the only ones that are let through: the GPU overlays are written for them."""


def parse(program: str, given: Sequence[str]) -> argparse.Namespace:
    """The options as ``program`` reads them, values checked; fails for what it would refuse."""
    parser = COMMAND_LINES[program]()
    known = {option for action in parser._actions for option in action.option_strings}
    for option in WAITED_FOR:
        assert option.partition("=")[0] not in known, f"{option} exists now: take it out of WAITED_FOR"
    args = parser.parse_args([each for each in given if each not in WAITED_FOR])
    stack_config(args)
    return args
