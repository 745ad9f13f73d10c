"""The sections of kernels by name: what runs by itself, and what later sections use first."""

from __future__ import annotations

from benchmarks.gpu.bench_run import Program
from benchmarks.gpu.draw_section import drawing
from benchmarks.gpu.integer_sections import integers
from benchmarks.gpu.layer_sections import attention, elementwise, layer
from benchmarks.gpu.linear_sections import floor, invariance, linear, tune, tune_many

KERNELS: dict[str, Program] = {
    "floor": floor, "invariance": invariance, "tune": tune, "linear": linear, "tune_many": tune_many,
    "integers": integers, "attention": attention, "elementwise": elementwise, "drawing": drawing, "layer": layer,
}
"""``tune`` and ``tune_many`` write a table of tiles into the folder of results, which the sections behind them use."""
