"""What a GPU, or its kernels, cannot do is said by name, without a GPU here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qspec.config import StackConfig
from qspec.engine.gpu_support import check_biases, check_formats, gpu_absence, model_absence
from qspec.errors import InvalidInput
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.pair_choice import PairChoice, candidate_pairs
from qspec.quant.method_plan import plan_draft, plan_verify
from qspec.quant.methods import Backend, Role

LAYERS = ("layers.0.qkv", "lm_head")


@pytest.fixture
def model() -> DecoderConfig:
    return DecoderConfig(
        family="llama", vocab_size=256, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=32,
        intermediate_size=64, norm=Norm.RMS, activation=Activation.SILU, gated_mlp=True, positions=Positions.ROTARY,
        tied_embeddings=True, norm_eps=1e-5, max_position=64, rope_theta=1e4, rope_scaling=None, qk_norm=False)


def set_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU that is one by name alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capability)


@pytest.mark.parametrize("draft", ["fp8:plane", "fp8:plane-a8"])
def test_a_gpu_without_fp8_refuses_e4m3_and_says_what_else_there_is(
    draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StackConfig(device="cuda", draft_quantization=draft, verify_quantization="none")
    verify = plan_verify(config, LAYERS, Backend.CUDA)
    plan = plan_draft(config, Backend.CUDA, verify=verify)
    set_capability(monkeypatch, (8, 0))
    check_formats(verify, Role.VERIFY)  # merging planes takes no fp8
    with pytest.raises(InvalidInput, match=r"draft_quantization: .*capability is 8.0, and e4m3 needs 8.9.*w8a8"):
        check_formats(plan, Role.DRAFT)
    set_capability(monkeypatch, (8, 9))
    check_formats(plan, Role.DRAFT)


@pytest.mark.parametrize(("draft", "verify"), [("w8a8", "int8"), ("w4a8", "int4"), ("int4", "int8:nibbles")])
def test_integer_pairs_need_no_fp8(draft: str, verify: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StackConfig(device="cuda", draft_quantization=draft, verify_quantization=verify)
    verifier = plan_verify(config, LAYERS, Backend.CUDA)
    set_capability(monkeypatch, (8, 0))
    check_formats(verifier, Role.VERIFY)
    check_formats(plan_draft(config, Backend.CUDA, verify=verifier), Role.DRAFT)


def test_auto_means_planes_where_there_is_fp8_and_nothing_that_needs_it_elsewhere(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    from qspec.engine.auto_methods import _for_all_batches, _without_times

    candidates = candidate_pairs("auto", "auto", Backend.CUDA)
    set_capability(monkeypatch, (9, 0))
    best = _without_times(candidates)[0]
    assert best.names == ("fp8:plane", "none:fp16")
    chosen = _for_all_batches(PairChoice(*best.names, ""), best)
    assert (chosen.draft, chosen.reason) == ("fp8", "fp8 drafting for none:fp16, which reads least")
    set_capability(monkeypatch, (8, 0))
    draft, verify = _without_times(candidates)[0].names
    assert verify == "none:fp16"
    assert not draft.startswith("fp8")


def test_an_old_gpu_is_refused_by_its_capability(model: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    set_capability(monkeypatch, (7, 5))
    monkeypatch.setattr("qspec.engine.gpu_support.missing_packages", list)
    assert gpu_absence(model) == "the GPU's compute capability is 7.5, and the kernels need 8.0"


def test_biases_that_no_kernel_adds_are_named() -> None:
    check_biases(["layers.0.qkv", "layers.0.qkv.bias", "final_norm"])
    with pytest.raises(InvalidInput, match=r"device: .*do not add \(layers.0.mlp_in.bias\); use --device cpu"):
        check_biases(["layers.0.qkv.bias", "layers.1.attention_out.bias", "layers.0.mlp_in.bias"])


def test_what_of_a_model_no_kernel_knows_is_named(model: DecoderConfig) -> None:
    assert model_absence(model) is None
    gpt2 = replace(
        model, family="gpt2", norm=Norm.LAYER, activation=Activation.GELU_TANH, gated_mlp=False,
        positions=Positions.LEARNED)
    absence = model_absence(gpt2)
    assert absence is not None
    for part in ("gpt2", Norm.LAYER.value, Activation.GELU_TANH.value, "without a gate", Positions.LEARNED.value):
        assert part in absence
    assert "vocabulary of 250" in (model_absence(replace(model, vocab_size=250)) or "")
    assert "head dimension of 24" in (model_absence(replace(model, head_dim=24)) or "")
