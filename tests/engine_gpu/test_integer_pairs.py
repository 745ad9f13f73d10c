"""Pairs with integer weights on GPU kernels: the text is the verifier's own, and its logits are those of its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec.interfaces import Sampling
from tests.engine.stacks import generate, generate_alone, running, sequences
from tests.engine_gpu.test_text_invariance import on_gpu

TOKENS = [5, 250, 17, 17, 300, 42]
PAIRS = (
    ("w8a8", "int8", True), ("fp8", "int8", False), ("fp8:plane-a8", "int8", False), ("w4a8", "int4", True),
    ("int4:plane", "int8:nibbles", True), ("w4a8:plane", "int8:nibbles", True),
)
"""Draft and verify method, and whether one copy of the weights serves both."""


def wanted(draft_length: int) -> list[Any]:
    """Short ones: the interpreter takes a tenth of a second for a row."""
    return sequences(Sampling(), draft_length=draft_length, prompts=((17,), (5, 9, 5)), max_tokens=3)


@pytest.mark.parametrize(("family", "verify"), [
    ("tied_least", "int8"), ("untied_least", "int8:nibbles"), ("tied_least", "int4:g64"), ("untied_least", "int8:g64"),
])
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
        plain = generate_alone(alone.loop, wanted(0))
    with on_gpu(model, draft_quantization=draft, verify_quantization=verify) as stack:
        asked = wanted(2)
        assert generate(stack.loop, asked) == plain
        assert sum(sequence.stats.drafted for sequence in asked) > 0
        assert stack.drafter is not None
        weights = stack.drafter.weights
        assert bool(weights.private) is not shared
        own = [item for item in weights.memory if item.name.startswith("weights ")]
        assert bool(own) is not shared
        assert not any(item.mapped_file for item in own)
