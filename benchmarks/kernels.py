"""Milliseconds per decoder step of the native kernels, by weight format and rows, beside what memory allows.

``python -m benchmarks.kernels`` builds a decoder of SmolLM2-135M's shapes over random weights, measures how fast all
threads together read as many bytes, and then whole steps with ``lm_head``: verification of 1 to 16 rows of one sequence
and a draft step. GB/s are the weights' bytes over the step's time. Every figure is the fastest of some repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from qspec.kernels.native import instruction_sets
from qspec.kernels.native.decoder import DraftRow, NativeDecoder, SequenceRows
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.models.decoder import linear_shapes
from qspec.quant.codecs import CODECS

SMOLLM2 = DecoderConfig(
    family="llama", vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, max_position=8192, norm=Norm.RMS, norm_eps=1e-5, activation=Activation.SILU, gated_mlp=True,
    positions=Positions.ROTARY, rope_theta=1e5, rope_scaling=None, qk_norm=False, tied_embeddings=True,
)  # fmt: skip
FORMATS = (
    "fp32", "fp16-planes", "e4m3-plane", "int8-row", "int8-g64", "int8-nibbles-g64", "int4-g64", "int4-g64-asymmetric",
    "int8-row + int8 per token", "int4-g64 + int8 per token",
)  # fmt: skip
ROWS = (1, 2, 3, 4, 5, 8, 16)
BLOCK = 16


def random_layer(
    weight_format: str, outputs: int, inputs: int, activations: str, source: torch.Generator
) -> LayerWeights:
    """Parts of a stored weight with random content."""
    if weight_format == "fp32":
        return LayerWeights("fp32", {"": torch.randn(outputs, inputs, generator=source).mul_(0.02)}, activations)
    parts: dict[str, Tensor] = {}
    for name, (dtype, shape) in CODECS[weight_format].shapes(outputs, inputs, "weight").items():
        if dtype is torch.float32:
            parts[name] = torch.full(shape, 0.001)
        elif name == "zeros":
            parts[name] = torch.full(shape, 8, dtype=dtype)
        else:
            codes = torch.randint(0, 64, shape, dtype=torch.uint8, generator=source)
            parts[name] = codes.view(dtype)
    return LayerWeights(weight_format, parts, activations)


def random_decoder(name: str, threads: Threads, instruction_set: str | None) -> tuple[NativeDecoder, int]:
    """A decoder over weights of ``name`` (a format, perhaps `` + `` activations), and how many bytes a step reads."""
    weight_format, _, activations = name.partition(" + ")
    config, source = SMOLLM2, torch.Generator().manual_seed(0)
    hidden = config.hidden_size
    layers = {
        layer: random_layer(weight_format, *shape, activations or "fp32", source)
        for layer, shape in linear_shapes(config).items()
    }
    norms = {f"layers.{index}.{norm}": torch.ones(hidden) for index in range(config.num_layers)
             for norm in ("attention_norm", "mlp_norm")}
    tensors = {**norms, "final_norm": torch.ones(hidden)}
    size = sum(part.nbytes for layer in layers.values() for part in layer.parts.values())
    return NativeDecoder(config, tensors, layers, 8192, threads, instruction_set=instruction_set), size


def fastest_ms(step: Callable[[], object], repeats: int) -> float:
    """The fastest call, after two for warming up: what other processes add is not the kernels'."""
    times = []
    for index in range(repeats + 2):
        started = time.perf_counter()
        step()
        if index >= 2:
            times.append(time.perf_counter() - started)
    return 1e3 * min(times)


def measure(name: str, threads: Threads, context: int, repeats: int, instruction_set: str | None) -> list[str]:
    """One line of the table."""
    decoder, size = random_decoder(name, threads, instruction_set)
    config = decoder.config
    blocks = list(range(-(-(context + 32) // BLOCK)))
    shape = (config.num_layers, len(blocks), config.num_kv_heads, BLOCK, config.head_dim)
    keys, values = torch.randn(2, *shape).unbind()
    tails = torch.zeros(2, config.num_layers, 1, config.num_kv_heads, 8, config.head_dim).unbind()
    logits = torch.empty(max(ROWS), config.vocab_size)

    def verify(rows: int) -> None:
        hidden = decoder.verify_rows([SequenceRows([1] * rows, context, blocks)], keys, values)
        decoder.logits(hidden, logits[:rows])

    def draft() -> None:
        decoder.greedy(decoder.draft_step([DraftRow(1, context, blocks, 0)], 0, keys, values, *tails))

    bare = torch.empty(size // 8, dtype=torch.int64).fill_(1)
    floor = fastest_ms(lambda: threads.read(bare), repeats)
    times = [fastest_ms(lambda rows=rows: verify(rows), repeats) for rows in ROWS]  # type: ignore[misc]
    drafted = fastest_ms(draft, repeats)
    cells = [f"{value:7.2f}" for value in (*times, drafted, floor)]
    return [f"{name:26}", *cells, f"{size / times[0] / 1e6:6.1f}", f"{floor / times[0]:6.0%}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=256, help="positions before the step's rows")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--instruction-set", choices=instruction_sets(), default=None)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, metavar="FORMAT")
    options = parser.parse_args()
    threads = Threads(options.threads)
    chosen = options.instruction_set or instruction_sets()[0]
    print(f"ms per step, SmolLM2-135M's shapes, {options.threads} threads, {chosen}, context {options.context}")
    print("  ".join([f"{'weights + activations':26}", *(f"{rows:3} row" + "s" * (rows > 1) for rows in ROWS),
                     "  draft", "   read", "  GB/s", "read/1"]))
    for name in options.formats:
        print("  ".join(measure(name, threads, options.context, options.repeats, options.instruction_set)), flush=True)


if __name__ == "__main__":
    main()
