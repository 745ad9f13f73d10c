"""What figures mean: costs, promises, verdicts, and the arena beside fp16 weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.gpu.decode_cells import AUTO
from benchmarks.gpu.decode_costs import cost_rows
from benchmarks.gpu.fp16_memory import fp16_bytes
from benchmarks.gpu.report import report_lines
from benchmarks.gpu.sections import GROUPS, PROGRAMS, USUAL, named_sections
from benchmarks.gpu.stack_section import round_figures
from benchmarks.gpu.verdicts import verdicts
from benchmarks.samples import Sample, Speculation
from benchmarks.widening import widen_config
from qspec.config import StackConfig
from qspec.engine.regions import arena_specs
from qspec.engine.weights import weight_regions
from qspec.memory.layout import ArenaLayout
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.models.decoder import linear_names, linear_shapes
from qspec.quant.method_plan import plan_verify
from qspec.quant.methods import Backend


def cell(k: int | str, rate: float, *, batch: int = 1, verify_s: float = 4e-3, **others: Any) -> dict[str, Any]:
    drafting = k not in (0, AUTO)
    return {
        "sampling": "greedy", "batch": batch, "k": k, "tokens_per_s": rate, "rates": [rate, rate], "round_s": verify_s,
        "verify_s": verify_s, "draft_step_s": 2e-3 if drafting else None, "outside_s": 1e-4, "drafted": 40,
        "accepted": 30, "tried": 33, "tokens_per_round": 4.0, "rounds": 10, "mean_draft_length": k if drafting else 0.0,
        "alpha": 0.9 if drafting else None, "accepted_share": 0.75 if drafting else None, **others}


def records() -> dict[str, Any]:
    cells = {
        "greedy batch 1 k 0": cell(0, 200.0), "greedy batch 1 k 4": cell(4, 280.0, verify_s=4.2e-3),
        "greedy batch 1 k auto": cell(AUTO, 270.0), "greedy batch 1 k 0 again": cell(0, 240.0),
    }
    about = {"step_bytes": 10e9, "read_bytes_per_s": 4e12, "verify": "none:fp16", "arena_over_fp16": 1.02}
    empty = {"environments": [], "about": {}, "failed": {}, "left": [], "complete": True}
    stack = {"MPS, rounds, batch 1 k 4": {
        "stack_batch": 1, "k": 4, "decode_tokens_per_s": 270.0, "accepted_share": 0.75,
        "seconds": {"wall": 13e-3, "workers": 12.4e-3}, "shares": {"wall": 1.0, "workers": 0.954}},
        "MPS, auto over plain, batch 8": {
            "stack_batch": 8, "ratio": 0.97, "ratios": [0.96, 0.97, 1.0],
            "tokens_per_s": {AUTO: [1.0, 2.0, 3.0], "plain": [2.0, 2.0, 2.0]}}}
    return {
        "x7": {**empty, "about": about, "cells": cells},
        "plain-cublas-x7": {**empty, "cells": {"greedy batch 1 k 0": cell(0, 250.0)}},
        "stack-x7": {**empty, "cells": stack},
        "transformers-x7": {**empty, "cells": {"batch 1": {"tokens_per_s": 14.0, "all": [8.0, 20.0]}}},
        "linear": {**empty, "cells": {"4096x4096 M=64": {
            "outputs": 4096, "inputs": 4096, "rows": 64, "us": {"both": 12.0, "cuBLAS fp16": 10.0},
            "both_floor_us": 9.0, "high_floor_us": 5.0}}},
    }


def test_costs_are_over_both_plain_cells_and_promises_by_alpha() -> None:
    row = list(cost_rows(records()["x7"]["cells"]))[1]
    assert (row["c"], row["v"]) == pytest.approx((0.5, 1.05))
    assert row["speed_up"] == pytest.approx(280 / 220)
    promised = (1 - 0.9**5) / 0.1 / (4 * 0.5 + 1.05)
    assert row["promised"] == pytest.approx(promised)
    assert row["made_good"] == pytest.approx(280 / 220 / promised)


def test_verdicts_count_the_faster_plain_decoding() -> None:
    found = {each.name: each for each in verdicts(records())}
    share = found["x7, batch 1: plain decoding's share of a pure read, the host's time included"]
    assert share.value == pytest.approx(0.55)
    auto = found["x7, batch 1: auto over the faster plain decoding"]
    assert auto.value == pytest.approx(270 / 250) and auto.kept
    best = found["x7, batch 1: best over the faster plain decoding"]
    assert best.value == pytest.approx(1.12) and not best.kept
    ratio = found["stack-x7, MPS, auto over plain, batch 8"]
    assert ratio.value == 0.97 and not ratio.kept
    turns = found["stack-x7, MPS, rounds, batch 1 k 4: the same with turns, over the calls in one process"]
    assert turns.value == pytest.approx(1 - 12.2 / 13) and turns.kept
    assert found["x7, batch 1: best over transformers' generate"].value == pytest.approx(14.0)
    assert not found["4096×4096, 64 rows: two planes over cuBLAS"].kept
    lines = list(report_lines(records()))
    shares = [line for line in lines if line.startswith("| greedy | 1 | 0 |")]
    assert [line.split(" | ")[4:6] for line in shares] == [["0.50", "0.62"], ["0.60", "0.62"]], "whole rounds, calls"
    assert sum(line.startswith(("ok ", "MISSED")) for line in lines) == len(found)


def test_a_rounds_time_is_told_apart() -> None:
    speculation = Speculation(
        rounds=11, drafted=40, accepted=30, accepted_per_position=(), drafted_per_position=(),
        rounds_per_draft_length=(), draft_s=0.05, verify_s=0.06, rpc_s=0.011, round_s=0.14)
    sample = Sample(prompt_tokens=9, token_ids=(1,) * 41, first_token_s=0.02, total_s=0.15, wall_s=0.2,
                    speculation=speculation)
    found = round_figures([sample, sample])
    assert found["seconds"] == pytest.approx({
        "wall": 0.013, "draft_calls": 0.005, "verify_calls": 0.004, "workers": 0.008, "rpc": 0.001,
        "scheduling": 0.003, "between": 0.001})
    parts = ("workers", "rpc", "scheduling", "between")
    assert sum(found["shares"][part] for part in parts) == pytest.approx(1.0)


SMOLLM2 = DecoderConfig(
    family="llama", vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
    intermediate_size=1536, max_position=8192, norm=Norm.RMS, norm_eps=1e-5, activation=Activation.SILU, gated_mlp=True,
    positions=Positions.ROTARY, rope_theta=1e5, rope_scaling=None, qk_norm=False, tied_embeddings=True)


def test_the_arena_is_held_against_fp16_weights_and_kv_blocks() -> None:
    stack = StackConfig(
        draft_quantization="off", verify_quantization="none:fp16", device="cuda", max_slots=64, kv_tokens=65536,
        max_model_len=1024)
    assert fp16_bytes(SMOLLM2, replace(stack, kv_tokens=64)) == 2 * (134_515_008 + 2 * 30 * 64 * 3 * 64)
    for factor, most in ((7, 1.03), (12, 1.02)):
        model = widen_config(SMOLLM2, factor)
        plan = plan_verify(stack, linear_names(model), Backend.CUDA)
        shapes: dict[str, tuple[int, ...]] = {
            name: (inputs, outputs) for name, (outputs, inputs) in linear_shapes(model).items()}
        norms = [f"layers.{index}.{norm}" for index in range(model.num_layers) for norm in (
            "attention_norm", "mlp_norm")]
        shapes |= dict.fromkeys((*norms, "final_norm"), (model.hidden_size,))
        regions = weight_regions(model, {**shapes, "embed": (model.vocab_size, model.hidden_size)}, plan)
        specs = [region.spec for region in regions] + arena_specs(model, stack, 1024, torch.float16)
        arena = ArenaLayout.place(specs).size
        assert 1.0 < arena / fp16_bytes(model, stack) < most


def test_names_are_sections_or_groups() -> None:
    assert set(USUAL) <= set(PROGRAMS)
    assert named_sections(["pairs", "x7", "decode"]) == ["pairs-x7", "x7", "x12", "x1"]
    assert "drawing" in GROUPS["kernels"]
    with pytest.raises(KeyError, match="no section 'x8'"):
        named_sections(["x8"])
