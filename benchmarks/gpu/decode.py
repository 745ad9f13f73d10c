"""Whole steps on a GPU, in one process: tokens per second plain and drafted, and what a draft and a pass cost.

``python -m benchmarks.gpu.decode --model smollm2 --widen 7 --batch 1 8 --k 0 2 4``: engines of verifier and drafter
over one arena, greedy. *c* is a draft step and *v* a verify pass, each over a plain verifier's step of the same batch;
"predicted" is what these and the measured acceptance give (measured speed-up over it tells what rounds lose outside).
The floor is a pure read of the bytes that a plain step reads, at the bandwidth measured in the same run. A widened
model's acceptance is its own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.gpu.in_process import Decoding, Pair, decode, named_model, pair_over
from benchmarks.gpu.timing import microseconds
from benchmarks.gpu.weights import read_all
from qspec.config import StackConfig
from qspec.interfaces import Sampling

_READ_BYTES = 512 << 20
_NEVER_READ = ("weights/embed",)
"""Of which a step reads a row or two."""


def main() -> int:
    """Measure and print; 0."""
    options = _parser().parse_args()
    longest = max(options.k)
    config = StackConfig(
        model=options.model, device="cuda", draft_quantization=options.draft if longest else "off",
        verify_quantization=options.verify, max_slots=max(options.batch), max_draft_length=max(longest, 1),
        kv_tokens=max(options.batch) * 1024)
    started = time.perf_counter()
    model = named_model(options.model, options.widen, _tell)
    with pair_over(model, config, _tell) as pair:
        loaded = time.perf_counter() - started
        bandwidth = _read_bandwidth()
        read = _step_bytes(pair)
        _tell(f"loaded in {loaded:.1f} s; a step reads {read / 1e9:.3f} GB, {bandwidth / 1e12:.2f} TB/s are read", None)
        results = []
        for batch in options.batch:
            plain: Decoding | None = None
            for length in sorted(options.k):
                decode(pair, batch, 2 * length + 12, length, Sampling())  # graphs of these sizes
                found = decode(pair, batch, options.tokens, length, Sampling())
                plain = plain or found
                results.append(_result(batch, length, found, plain, read / bandwidth))
                sys.stdout.write(_line(results[-1]) + "\n")
                sys.stdout.flush()
    environment = {**describe_environment(), "gpu": torch.cuda.get_device_name(), "torch_cuda": torch.version.cuda}
    record = {"environment": environment, "model": options.model, "widened": options.widen, "draft": options.draft,
              "verify": options.verify, "load_s": loaded, "step_bytes": read, "read_bytes_per_s": bandwidth,
              "results": results}
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        name = f"{options.draft}-{options.verify}" if options.verify != "none:fp16" else options.draft
        (options.output / f"decode-{options.widen}-{name.replace(':', '-')}.json").write_text(
            json.dumps(record), "utf-8")
    sys.stdout.write(json.dumps(record) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="alias, directory or GGUF file")
    parser.add_argument("--widen", type=int, default=1, help="times as wide, in memory")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences at once")
    parser.add_argument("--k", type=int, nargs="+", default=[0, 2, 4], help="draft lengths; the least is plain")
    parser.add_argument("--draft", default="fp8:plane", help="the drafter's method")
    parser.add_argument("--verify", default="none:fp16", help="the verifier's method")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of each text")
    parser.add_argument("--output", type=Path, help="folder of the result")
    return parser


def _result(batch: int, length: int, found: Decoding, plain: Decoding, floor_s: float) -> dict[str, Any]:
    """One row; ``floor_s``: of a plain step."""
    c = None if found.draft_step_s is None else found.draft_step_s / plain.verify_s
    v = found.verify_s / plain.verify_s
    predicted = found.tokens_per_round / (length * (c or 0.0) + v)
    return {
        "batch": batch, "k": length, **asdict(found), "c": c, "v": v,
        "speed_up": found.tokens_per_s / plain.tokens_per_s, "predicted": predicted,
        "plain_share_of_floor": floor_s / plain.verify_s,
    }


def _line(row: dict[str, Any]) -> str:
    parts = [f"batch {row['batch']:>3}  k {row['k']}  {row['tokens_per_s']:8.1f} tok/s",
             f"pass {row['verify_s'] * 1e3:.3f} ms"]
    if row["c"] is not None:
        parts.append(
            f"draft step {row['draft_step_s'] * 1e3:.3f} ms  c {row['c']:.3f}  v {row['v']:.3f}  accepted "
            f"{row['acceptance']:.3f}  speed-up {row['speed_up']:.3f} (predicted {row['predicted']:.3f})")
    else:
        parts.append(f"{row['plain_share_of_floor']:.1%} of the floor's speed")
    parts.append(f"outside {row['outside_s'] * 1e6:.0f} µs a round")
    return "  ".join(parts)


def _step_bytes(pair: Pair) -> int:
    """Bytes of weights that a plain step reads."""
    arena = pair.verifier.arena
    names = [name for name in arena.names() if name.startswith(("weights/", "quantised/")) and name not in _NEVER_READ]
    return sum(tensor.numel() * tensor.element_size() for tensor in map(arena.tensor, names))


def _read_bandwidth() -> float:
    """Bytes per second of a kernel that only reads."""
    device = torch.device("cuda")
    copies = [torch.randint(0, 255, (_READ_BYTES,), dtype=torch.uint8, device=device) for _ in range(2)]
    out = torch.empty(_READ_BYTES // 16384, dtype=torch.int32, device=device)
    return _READ_BYTES / (microseconds([partial(read_all, copy, out) for copy in copies], device) * 1e-6)


def _tell(text: str, share: float | None) -> None:
    """Lines, not every percent."""
    if share is None or share == 1.0:
        sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
