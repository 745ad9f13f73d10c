"""``python -m benchmarks.widen --model smollm2 --factor 7 --output DIR``: a larger model that computes the same.

See ``benchmarks/widening.py``. SmolLM2-135M widened 7 times has 5.6 billion parameters and takes 28 GB of disk (fp32
and int8); on a GPU it need not be written at all (``benchmarks/widened_model.py``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.widened_model import write_widened
from qspec.cli import run_program
from qspec.config import DEFAULT_MODEL
from qspec.errors import InvalidInput
from qspec.models.converted import prepare


def main() -> int:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="alias, directory, GGUF file or hub id (%(default)s)")
    parser.add_argument("--factor", type=int, default=7, help="how many times as wide (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    options = parser.parse_args()
    if options.factor < 1:
        raise InvalidInput.field("factor", f"must be at least 1, got {options.factor}")
    model = prepare(options.model, progress=_tell)
    widened = write_widened(model, options.factor, options.output, seed=options.seed, progress=_tell)
    config = widened.config
    print(f"{options.output}: hidden size {config.hidden_size}, {config.num_heads} heads, "
          f"{config.num_kv_heads} key/value heads, {config.intermediate_size} in the MLP")
    return 0


def _tell(text: str, share: float | None) -> None:
    done = "" if share is None else f" {share:.0%}"
    sys.stderr.write(f"{text}{done}\n")


if __name__ == "__main__":
    run_program(main)
