"""Decoding by both engines in one process: a cell for each batch, temperature and draft length.

*c* is a draft step and *v* a verify pass, each over a plain verifier's step of the same batch and temperature;
"predicted" is what these and the measured acceptance give (measured speed-up over it tells what rounds lose outside).
The floor is a pure read of the bytes that a plain step reads, at the bandwidth measured in the same run. Plain decoding
is measured before and after the drafts of its batch, and their mean counts: clocks drift. A model is loaded once for
all cells.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.in_process import Decoding, Pair, decode, named_model, pair_over
from benchmarks.gpu.round_profile import profile_rounds
from benchmarks.gpu.section_file import SectionFile
from benchmarks.gpu.timing import microseconds
from benchmarks.gpu.weights import read_all
from qspec.config import StackConfig
from qspec.cost_calibration import calibrate
from qspec.interfaces import Progress, Sampling
from qspec.quant.methods import NO_DRAFTER

BATCHES = (1, 8, 32, 64)
LENGTHS: tuple[int | None, ...] = (0, 1, 2, 4, 6, None)
TEMPERATURES = (0.0, 1.0)
POSITIONS = 1024
"""Of a sequence: prompt and text."""
_READ_BYTES = 512 << 20
_NEVER_READ = ("weights/embed",)
"""Of which a step reads a row or two."""
_PROFILED = ((1, 0), (1, 4), (8, 0), (32, 2))
"""(batch, draft length) of which it is told where the time goes."""


def measure_cells(
    file: SectionFile, *, model: str, factor: int, draft: str, verify: str, batches: Sequence[int],
    lengths: Sequence[int | None], temperatures: Sequence[float], tokens: int, tell: Progress,
    profiled: Sequence[tuple[int, int]] = _PROFILED, positions: int = POSITIONS,
    warm_up: int = 8,
) -> None:
    """Measure all cells that ``file`` lacks."""
    names = [name for batch in batches for temperature in temperatures
             for name in (*(_name(batch, temperature, length) for length in lengths), _again(batch, temperature))]
    profiles = [_profile_name(batch, length) for batch, length in profiled if batch in batches and length in lengths]
    if not file.missing([*names, *profiles]):
        return
    longest = max((length for length in lengths if length is not None), default=0)
    config = StackConfig(
        model=model, device="cuda", draft_quantization=draft if longest else NO_DRAFTER, verify_quantization=verify,
        max_slots=max(batches), max_draft_length=max(longest, 1), kv_tokens=max(batches) * positions,
        max_model_len=positions)
    started = time.perf_counter()
    with pair_over(named_model(model, factor, tell), config, tell) as pair:
        if None in lengths:
            calibrate(pair.loop, tell)
        read, bandwidth = step_bytes(pair), _read_bandwidth()
        file.put("about", {
            "model": model, "widened": factor, "draft": draft, "verify": verify, "temperatures": list(temperatures),
            "load_s": time.perf_counter() - started, "step_bytes": read, "read_bytes_per_s": bandwidth,
            "graphs": pair.graphs, "memory": memory(pair)})
        tell(f"loaded; a step reads {read / 1e9:.3f} GB, {bandwidth / 1e12:.2f} TB/s are read, {pair.graphs} graphs",
             None)
        for batch in batches:
            for temperature in temperatures:
                _cells_of_batch(file, pair, batch, temperature, lengths, tokens, read / bandwidth, warm_up, tell)
        for batch, length in profiled:
            if batch in batches and length in lengths:
                file.measure(_profile_name(batch, length), partial(profile_rounds, pair, batch, length),
                             lambda text: tell(text, None))


def _cells_of_batch(
    file: SectionFile, pair: Pair, batch: int, temperature: float, lengths: Sequence[int | None], tokens: int,
    floor_s: float, warm_up: int, tell: Progress,
) -> None:
    """Plain decoding, drafts of every length, plain decoding again."""
    sampling = Sampling(temperature=temperature, seed=20260801)

    def measured(length: int | None) -> dict[str, Any]:
        decode(pair, batch, warm_up, length, sampling)  # graphs of these sizes
        return _cell(batch, temperature, length, decode(pair, batch, tokens, length, sampling))

    ordered = sorted(lengths, key=lambda length: (length is None, length or 0))
    for name, length in [(_name(batch, temperature, each), each) for each in ordered] + [
            (_again(batch, temperature), 0)]:
        found = file.measure(name, partial(measured, length), lambda text: tell(text, None))
        if found is not None:
            tell(f"{name}: {found['tokens_per_s']:.1f} tok/s, pass {found['verify_s'] * 1e3:.3f} ms, outside "
                 f"{found['outside_s'] * 1e6:.0f} µs, {floor_s / found['verify_s']:.2f} of a pure read", None)


def _cell(batch: int, temperature: float, length: int | None, found: Decoding) -> dict[str, Any]:
    return {"batch": batch, "temperature": temperature, "k": "auto" if length is None else length, **asdict(found)}


def _name(batch: int, temperature: float, length: int | None) -> str:
    return f"batch {batch} temperature {temperature:g} k {'auto' if length is None else length}"


def _again(batch: int, temperature: float) -> str:
    return f"{_name(batch, temperature, 0)} again"


def _profile_name(batch: int, length: int) -> str:
    return f"profile batch {batch} k {length}"


def step_bytes(pair: Pair) -> int:
    """Bytes of weights that a plain step reads."""
    arena = pair.verifier.arena
    names = [name for name in arena.names() if name.startswith(("weights/", "quantised/")) and name not in _NEVER_READ]
    return sum(tensor.numel() * tensor.element_size() for tensor in map(arena.tensor, names))


def memory(pair: Pair) -> dict[str, Any]:
    """What both engines hold, and the arena beside fp16 weights and their KV blocks."""
    description, arena = pair.verifier.describe(), pair.verifier.arena
    drafter = pair.loop.drafter
    shapes = [tuple(arena.tensor(name).shape) for name in arena.names() if name.endswith("/high")]
    others = sum(arena.tensor(name).numel() for name in arena.names()
                 if name.startswith("weights/") and not name.endswith(("/high", "/low", "/scales")))
    weights = sum(outputs * inputs for outputs, inputs in shapes) + others
    kv = sum(arena.tensor(name).nbytes for name in ("kv/keys", "kv/values"))
    fp16 = 2 * weights + kv
    return {
        "arena_bytes": description.arena.size, "fp16_weights_and_kv_bytes": fp16,
        "arena_over_fp16": description.arena.size / fp16,
        "verifier": {item.name: item.bytes for item in description.memory},
        "drafter": {} if drafter is None else {item.name: item.bytes for item in drafter.memory},
    }


def _read_bandwidth() -> float:
    """Bytes per second of a kernel that only reads."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = _READ_BYTES if device.type == "cuda" else 1 << 16
    copies = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2)]
    out = torch.empty(size // 16384, dtype=torch.int32, device=device)
    return size / (microseconds([partial(read_all, copy, out) for copy in copies], device) * 1e-6)
