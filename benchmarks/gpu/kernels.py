"""Times of the GPU kernels, their floors, and whether a row's bits depend on the rows beside it.

``python -m benchmarks.gpu.kernels --output DIR [--section NAME …]`` runs sections in order, each under its own limit
of time; one whose result lies in DIR is not run again, so that an interrupted run goes on where it stopped. ``tune``
writes ``DIR/hopper.json``, which the sections after it use. Without a GPU it tries itself out on tiny shapes in
Triton's interpreter (``TRITON_INTERPRET=1``). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.gpu import integer_sections, layer_sections, linear_sections
from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.summary import comparison, linear_summary

SECTIONS: dict[str, Callable[[BenchRun], Any]] = {
    "floor": linear_sections.floor,
    "invariance": linear_sections.invariance,
    "tune": linear_sections.tune,
    "linear": linear_sections.linear,
    "tune_many": linear_sections.tune_many,
    "integers": integer_sections.integers,
    "attention": layer_sections.attention,
    "elementwise": layer_sections.elementwise,
    "layer": layer_sections.layer,
}


def main() -> int:
    """Run the sections that were asked for; 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="may be repeated; default: all")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="run sections that have a result, too")
    parser.add_argument("--seconds", type=float, default=150.0, help="limit of each section")
    parser.add_argument("--quick", action="store_true", help="fewer rows and cases, only kernels that are in use")
    parser.add_argument("--against", type=Path, help="results to print these ones beside, such as those checked in")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    run = BenchRun(torch.device("cuda" if cuda else "cpu"), options.output, options.seconds, options.quick)
    environment = {**describe_environment(), "gpu": torch.cuda.get_device_name() if cuda else None,
                   "torch_cuda": torch.version.cuda}
    run.tell(f"{environment['gpu']}, torch {environment['torch']}, CUDA {environment['torch_cuda']}")
    failed = []
    for name in options.section or SECTIONS:
        if (options.output / f"{name}.json").exists() and not options.again:
            run.tell(f"{name}: there already")
            continue
        run.begin()
        run.tell(f"== {name}")
        try:
            run.write(name, SECTIONS[name](run))
        except Exception:
            logging.exception("section %s failed; the others go on", name)
            failed.append(name)
        if cuda:
            torch.cuda.empty_cache()
    results = {name: json.loads((options.output / f"{name}.json").read_text("utf-8"))
               for name in SECTIONS if (options.output / f"{name}.json").exists()}
    (options.output / "all.json").write_text(json.dumps({"environment": environment, **results}) + "\n", "utf-8")
    for line in linear_summary(results.get("linear", [])):
        print(line)
    for line in comparison(json.loads(options.against.read_text("utf-8")), results) if options.against else ():
        print(line)
    print(json.dumps({"environment": environment, "sections": list(results), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
