"""Scored logits are those of the workers, and layers can have methods of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec import QuantizedModel
from qspec.engine.torch_forward import TorchForward
from qspec.errors import InvalidInput
from qspec.evaluation.scoring import ScoredModel, first_positions, numbers, text_logits
from qspec.quant.methods import METHODS, Backend, Choice, choose_draft, choose_verify
from tests.engine.stacks import running
from tests.evaluation.conftest import TEXTS
from tests.models.packed_checkpoints import write_packed
from tests.models.quiet import prepare_quietly

VARIANTS = [f"{method.name}:{variant.name}" for method in METHODS.values() for variant in method.variants]
NONE = choose_verify("none", Backend.CPU)


def drafting(name: str) -> Choice:
    choice = choose_draft(name, Backend.CPU, verify=NONE)
    assert choice is not None
    return choice


def error_db(exact: Tensor, found: Tensor) -> float:
    return float(20 * torch.log10(exact.norm() / (exact - found).norm()))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_the_verifiers(scored: ScoredModel, wide: Path, name: str) -> None:
    """The same numbers in another order of summation, which is the processor's.

    Activations of few bits turn such a difference into a step where a number lies between two codes. That befalls few
    texts: another format befalls all.
    """
    choice = choose_verify(name, Backend.CPU)
    texts = (*TEXTS, (250, 17, 5), (40, 41), (99, 3, 7, 12), (300, 11))
    errors = []
    with running(wide, draft_quantization="off", verify_quantization=name) as stack:
        for text, found in zip(texts, scored.logits(scored.layers(scored.uniform(choice)), texts), strict=True):
            theirs = stack.verifier.cached_decoder(8).score(text, 64)
            assert found.shape == theirs.shape
            errors.append(error_db(theirs, found))
    if choice.variant.activations == "fp32":
        assert min(errors) > 90
    else:
        assert sorted(errors)[len(errors) // 2] > 90
        assert min(errors) > 20


@pytest.mark.parametrize("name", ["int4", "w4a8:g64-asymmetric", "int4:g32"])
def test_codes_that_came_with_the_model_are_scored(wide: Path, tmp_path: Path, name: str) -> None:
    """A GPTQ checkpoint's own codes where the method's format is its; ``wide`` sets the cache."""
    assert wide.exists()
    write_packed(tmp_path / "packed", group_size=64, symmetric=False)
    packed = ScoredModel(prepare_quietly(tmp_path / "packed"))
    choice = choose_verify(name, Backend.CPU, stored=packed.model.stored)
    with running(tmp_path / "packed", draft_quantization="off", verify_quantization=name) as stack:
        theirs = stack.verifier.cached_decoder(8).score(TEXTS[0], 64)
    found = packed.logits(packed.layers(packed.uniform(choice)), TEXTS[:1])[0]
    assert error_db(theirs, found) > (90 if choice.variant.activations == "fp32" else 20)
    if choice.variant.weights == "int4-g64-asymmetric":
        exact = packed.decoded("layers.0.qkv", "fp32")
        assert torch.equal(packed.decoded("layers.0.qkv", choice.variant.weights), exact)


def test_packed_int8_is_the_drafters_kernel(scored: ScoredModel, wide: Path) -> None:
    with QuantizedModel(str(wide), "none") as exact, running(wide, draft_quantization="w8a8") as stack:
        assert stack.drafter is not None
        found = scored.logits(scored.layers(scored.uniform(drafting("w8a8"))), TEXTS)[0]
        theirs = stack.drafter.forward
        assert isinstance(theirs, TorchForward)
        assert error_db(text_logits(theirs.decoder, TEXTS[0]), found) > 90
        assert error_db(exact(torch.tensor([TEXTS[0]]))[0], found) < 60


def test_one_layer_can_differ(scored: ScoredModel) -> None:
    int4 = drafting("int4")
    exact = scored.layers(scored.uniform(NONE))
    base = scored.logits(exact, TEXTS)
    head = scored.logits({**exact, "lm_head": scored.layer("lm_head", int4)}, TEXTS)
    last = scored.logits({**exact, "layers.1.mlp_out": scored.layer("layers.1.mlp_out", int4)}, TEXTS)
    for changed in (head, last):
        assert 5 < error_db(base[0], changed[0]) < 60
    assert not torch.equal(head[0], last[0])
    assert all(torch.equal(a, b) for a, b in zip(base, scored.logits(exact, TEXTS), strict=True))


def test_texts_are_scored_on_their_own_and_causally(scored: ScoredModel) -> None:
    decoder = scored.decoder(scored.layers(scored.uniform(NONE)), 64)
    whole = text_logits(decoder, TEXTS[0])
    changed = text_logits(decoder, (*TEXTS[0][:20], 1, 2, 3))
    assert torch.allclose(whole[:20], changed[:20], atol=1e-5)
    assert not torch.allclose(whole[20], changed[20], atol=1e-2)


def test_a_model_agrees_with_itself_and_less_with_fewer_bits(scored: ScoredModel) -> None:
    exact = scored.layers(scored.uniform(NONE))
    targets = scored.logits(exact, TEXTS)
    assert scored.agreement(exact, TEXTS, targets).greedy == 1
    assert scored.agreement(exact, TEXTS, targets).positions == sum(map(len, TEXTS))
    int8, int4 = (
        scored.agreement(scored.layers(scored.uniform(drafting(name))), TEXTS, targets) for name in ("int8", "int4"))
    assert 1 > int8.acceptance > int4.acceptance > 0
    assert 0 < int8.divergence < int4.divergence


@pytest.mark.parametrize("name", ["none", "none:fp16", "int8", "int4", "fp4:nvfp4"])
def test_bytes_are_those_of_the_arena(scored: ScoredModel, wide: Path, name: str) -> None:
    choice = choose_verify(name, Backend.CPU)
    weights = choice.variant.weights
    with running(wide, draft_quantization="off", verify_quantization=name) as stack:
        arena = stack.verifier.arena
        names = [region for region in arena.names() if region.startswith(("weights/", "quantised/"))]
        stored = {region: arena.tensor(region).nbytes for region in names}
    assert scored.store_bytes(choice) == sum(stored.values())
    prefixes = ("weights/layers", "weights/lm_head") if weights == "fp32" else ("quantised/",)
    layers = [size for region, size in stored.items() if region.startswith(prefixes) and "norm" not in region]
    assert sum(scored.layer_bytes(layer, weights) for layer in scored.layer_names) == sum(layers)


def test_progress_goes_to_the_end(scored: ScoredModel) -> None:
    told: list[float | None] = []
    scored.layers(scored.uniform(NONE), lambda _text, share: told.append(share))
    assert told[-1] == 1.0
    assert len(told) == len(scored.layer_names)


def test_a_text_that_is_too_long_is_refused(scored: ScoredModel) -> None:
    with pytest.raises(InvalidInput, match="200 tokens long, and the model knows 128 positions"):
        scored.logits(scored.layers(scored.uniform(NONE)), [tuple(range(200))])


def test_choices_with_the_same_formats_compute_the_same() -> None:
    assert numbers(drafting("int4:g64")) == numbers(choose_verify("int4", Backend.CPU))
    assert numbers(drafting("w4a8:g64")) != numbers(drafting("int4:g64"))


def test_positions_are_cut_and_nothing_is_left_that_predicts_nothing() -> None:
    texts = [(1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert first_positions(texts, 100) == texts
    assert first_positions(texts, 5) == [(1, 2, 3), (4, 5)]
    assert first_positions(texts, 4) == [(1, 2, 3)]
    assert first_positions(texts, 2) == [(1, 2)]
