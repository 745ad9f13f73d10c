"""Pairs with integer weights on GPU kernels: the text is the verifier's own, and its logits are those of its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.stacks import generate, generate_alone, running
from tests.engine_gpu.test_text_invariance import on_gpu, wanted

TOKENS = [5, 250, 17, 17, 300, 42]
PAIRS = (
    ("w8a8", "int8", True), ("fp8", "int8", False), ("fp8:plane-a8", "int8", False), ("w4a8", "int4", True),
    ("int4:plane", "int8:nibbles", True), ("w4a8:plane", "int8:nibbles", True),
)
"""Draft and verify method, and whether one copy of the weights serves both."""


@pytest.mark.parametrize(
    "verify", ["int8", "int8:nibbles", "int4:g64", "int8:g64"])
@pytest.mark.parametrize("family", ["tied_least", "untied_least"])
def test_logits_are_those_of_the_format(family: str, verify: str, model_of: Callable[[str], Path]) -> None:
    path = model_of(family)
    with running(path, draft_quantization="off", verify_quantization=verify, device="cpu", kernels="torch") as cpu:
        expected = cpu.verifier.cached_decoder(1).score(TOKENS, 8)
    with on_gpu(path, draft_quantization="off", verify_quantization=verify) as gpu:
        found = [gpu.verifier.cached_decoder(1).score(TOKENS, rows) for rows in (6, 4)]
    assert torch.equal(*found)
    assert (found[0] - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize(("draft", "verify", "shared"), PAIRS)
def test_text_is_the_verifiers_own(draft: str, verify: str, shared: bool, model: Path) -> None:
    with on_gpu(model, draft_quantization="off", verify_quantization=verify) as alone:
        plain = generate_alone(alone.loop, wanted("greedy", 0))
    with on_gpu(model, draft_quantization=draft, verify_quantization=verify) as stack:
        asked = wanted("greedy", 3)
        assert generate(stack.loop, asked) == plain
        assert sum(sequence.stats.accepted for sequence in asked) > 0
        assert stack.drafter is not None
        weights = stack.drafter.weights
        assert bool(weights.private) is not shared
        own = [item for item in weights.memory if item.name.startswith("weights ")]
        assert bool(own) is not shared
        assert not any(item.mapped_file for item in own)


def test_the_drafts_of_a_format_are_the_cpus(model: Path) -> None:
    """One step of ``w8a8`` over an int8 store, which quantises activations, against its emulation."""
    drafted = []
    for device in ("cpu", "cuda"):
        changes = {"device": device, "kernels": "torch" if device == "cpu" else "auto"}
        with on_gpu(model, draft_quantization="w8a8", verify_quantization="int8", **changes) as stack:
            asked = wanted("greedy", 4)
            generate(stack.loop, asked)
            drafted.append(sum(each.stats.accepted for each in asked) / sum(each.stats.drafted for each in asked))
    assert abs(drafted[0] - drafted[1]) < 0.25
