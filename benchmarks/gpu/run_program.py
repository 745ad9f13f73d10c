"""The process that goes through the sections (``benchmarks.gpu.__main__``)."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import SAMPLINGS
from benchmarks.gpu.gpu_environment import describe_gpu_environment
from benchmarks.gpu.report import report_lines
from benchmarks.gpu.results_file import ResultsFile
from benchmarks.gpu.section_run import Attempt, Limits, run_sections
from benchmarks.gpu.sections import GROUPS, PROGRAMS, USUAL, named_sections
from benchmarks.gpu.verdicts import verdicts


def run_program(options: argparse.Namespace, attempt: int, until: float, *, lost: int) -> int:
    """Measure, print tables, verdicts, and last a line of JSON. The exit code: ``lost`` where the GPU was."""
    if options.list:
        print("\n".join(PROGRAMS) + "\ngroups: " + " ".join(GROUPS))
        return 0
    try:
        wanted = named_sections(options.section) if options.section else list(USUAL)
        if unknown := set(options.sampling) - SAMPLINGS.keys():
            raise KeyError(f"there is no way of sampling called {', '.join(unknown)}; there are {', '.join(SAMPLINGS)}")
    except KeyError as error:
        sys.stderr.write(f"{error.args[0]}\n")
        return 2
    torch.manual_seed(0)
    results = ResultsFile(options.output / "results.json")
    run = BenchRun(
        output=options.output, results=results, quick=options.quick, model=options.model, draft=options.draft,
        verify=options.verify, batches=tuple(options.batch), lengths=tuple(options.k),
        samplings=tuple(options.sampling), tokens=options.tokens)
    limits = Limits(until=until, section_s=options.seconds)
    if not run_sections(wanted, PROGRAMS, results, run, limits, Attempt(number=attempt, again=options.again)):
        return lost
    for line in report_lines(results.sections, options.against):
        print(line)
    print(json.dumps(_summary(results, options.section)))
    return int(not all(results.complete(run.name_with_pair(name)) for name in wanted))


def _summary(results: ResultsFile, asked: list[str]) -> dict[str, Any]:
    """The last line: short, since terminals keep the end only; all figures are in the file."""
    return {
        "environment": describe_gpu_environment(), "asked": asked,
        "sections": {name: {"complete": record["complete"], "cells": len(record["cells"]),
                            "failed": sorted(record["failed"]), "left": len(record["left"])}
                     for name, record in results.sections.items()},
        "verdicts": [each.to_json() for each in verdicts(results.sections)],
    }
