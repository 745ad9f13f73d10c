"""How long a user waits: from the command to its first text, the start of a whole private stack included."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.environment import ROOT
from qspec.errors import QspecError

TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """One run of the client, in seconds from its start."""

    first_text_s: float
    """Until the first byte on standard output."""
    command_s: float
    """Until the client and its stack had ended."""


def measure_first_token(stack_options: Sequence[str]) -> FirstToken:
    """Run the client once as a user would; ``stack_options`` choose model and threads. The cache has to be warm."""
    command = [sys.executable, "-m", "coordinator.client", "--prompt", "hi", "--max-tokens", "1",
               "--timeout", str(TIMEOUT_S), *stack_options]
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first_text_s = time.perf_counter() - started
        _, errors = process.communicate()
        command_s = time.perf_counter() - started
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise QspecError(f"the client ended with exit code {process.returncode}: {last[0]}")
    return FirstToken(first_text_s=first_text_s, command_s=command_s)
