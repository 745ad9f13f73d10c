"""Runs sections one after the other, each under its limit of time and none under the other's faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.bench_run import BenchRun, Program
from benchmarks.gpu.gpu_environment import describe_gpu_environment
from benchmarks.gpu.results_file import GpuLost, ResultsFile, Section, free_gpu

WHOLE = "the section"
"""What failed where no cell did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much time there is; of ``time.time``, which goes on from process to process."""

    until: float
    """When nothing new is begun."""
    section_s: float
    """Seconds after which a section begins nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Which of the processes of a run this is."""

    number: int = 0
    """From 0 on; the next one goes on where a fault of the GPU ended the one before."""
    again: bool = False
    """Whether to measure anew what is there."""


def run_sections(
    wanted: Sequence[str], programs: Mapping[str, Program], results: ResultsFile, run: BenchRun, limits: Limits,
    attempt: Attempt, *, clock: Callable[[], float] = time.time,
) -> bool:
    """Measure; False when a fault of the GPU ended it, after which another process may go on."""
    environment = describe_gpu_environment()
    for name in wanted:
        key = run.name_with_pair(name)
        if results.complete(key) and not attempt.again:
            _say(f"{key}: there already")
            continue
        started = clock()

        def tell(line: str, key: str = key, started: float = started) -> None:
            _say(f"[{key} {clock() - started:6.1f} s] {line}")

        section = results.section(
            key, environment, deadline=min(limits.until, started + limits.section_s), tell=tell,
            again=attempt.again and attempt.number == 0, retry=attempt.number == 0, clock=clock)
        if WHOLE in section.record["failed"]:
            continue  # in an earlier attempt
        try:
            _measure(programs[name], section, run)
        except GpuLost as error:
            tell(f"the GPU is lost in {error}")
            return False
        section.finish()
        tell("complete" if section.record["complete"] else "not complete")
        free_gpu()
    return True


def _measure(program: Program, section: Section, run: BenchRun) -> None:
    try:
        program(section, run)
    except Exception as error:  # noqa: BLE001  (one section's failure must not cost the others)
        section.fail(WHOLE, error)


def _say(line: str) -> None:
    print(line, flush=True)
