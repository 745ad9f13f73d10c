"""Layers of one worker in several formats: text as without speculation, bytes shared layer by layer, budgets, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec.engine.drafter import LocalDrafter
from qspec.engine.linears import PlainLinear, TiledLinear, verifier_linears
from qspec.engine.torch_forward import TorchForward
from qspec.engine.verifier import LocalVerifier
from qspec.errors import InvalidInput
from qspec.interfaces import Sampling
from qspec.kernels.emulated_linear import EmulatedLinear
from qspec.kernels.int8_linear import Int8Linear
from qspec.models.decoder import linear_names
from qspec.quant.codecs import CODECS
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend, choose_verify
from tests.engine.stacks import SEEDED, Stack, config, generate, generate_alone, quiet, running, sequences

PAIRS = [
    {"draft_quantization": "w8a8", "draft_overrides": "lm_head=none,layers.0.*=int8",
     "verify_quantization": "none", "verify_overrides": "layers.1.mlp_out=int8"},
    {"draft_quantization": "w4a8", "draft_overrides": "lm_head=w8a8",
     "verify_quantization": "int4", "verify_overrides": "lm_head=none"},
    {"draft_quantization": "fp8", "draft_overrides": "layers.*.qkv=none",
     "verify_quantization": "none:fp16", "verify_overrides": "layers.1.*=int8:nibbles,layers.1.qkv=fp4"},
    {"draft_quantization": "none", "draft_overrides": "layers.0.*=w8a8",
     "verify_quantization": "w8a8", "verify_overrides": "lm_head=int4:g32-asymmetric"},
]


@pytest.fixture(scope="module")
def wide(model_of: Callable[[str], Path]) -> Path:
    """A model that every group size divides."""
    return model_of("llama_wide")


def texts(stack: Stack, draft_length: int) -> list[list[list[int]]]:
    """Greedy and seeded texts of one batch."""
    return [
        generate(stack.loop, sequences(sampling, draft_length=draft_length, max_tokens=8))
        for sampling in (Sampling(), SEEDED)
    ]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['draft_quantization']}-{pair['verify_quantization']}")
@pytest.mark.parametrize("family", ["llama_wide", "tied_wide"])
def test_text_is_the_verifiers_own(model_of: Callable[[str], Path], pair: dict[str, str], family: str) -> None:
    model = model_of(family)
    with running(model, **{**pair, "draft_quantization": "off"}) as stack:
        expected = [
            generate_alone(stack.loop, sequences(sampling, draft_length=0, max_tokens=8))
            for sampling in (Sampling(), SEEDED)
        ]
    with running(model, **pair) as stack:
        assert texts(stack, 3) == expected
        assert stack.verifier.describe().row_invariant
        wanted = sequences(draft_length=3)
        generate(stack.loop, wanted)
        assert sum(sequence.stats.accepted for sequence in wanted) > 0


def test_an_override_changes_the_verifiers_logits_and_no_other_layer(wide: Path) -> None:
    tokens, logits = torch.arange(3, 12), {}
    for overrides in ("", "layers.1.mlp_out=int4", "*=int4"):
        with running(wide, draft_quantization="off", verify_overrides=overrides) as stack:
            logits[overrides] = stack.verifier.cached_decoder(1).score(tuple(tokens.tolist()), 64)
    with running(wide, draft_quantization="off", verify_quantization="int4") as stack:
        whole = stack.verifier.cached_decoder(1).score(tuple(tokens.tolist()), 64)
    assert torch.equal(logits["*=int4"], whole), "all layers overridden are the method itself"
    plain, one = logits[""], logits["layers.1.mlp_out=int4"]
    assert 0 < float((one - plain).norm()) < 0.7 * float((whole - plain).norm())


def test_row_tiles_suit_every_format_of_a_shape() -> None:
    """The library takes another kernel for a dequantised weight than for one in place, with other tiles."""
    inputs, outputs = 576, 1536
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))

    def tiles(*methods: str) -> tuple[int, ...]:
        choices = {f"layers.{index}.qkv": choose_verify(name, Backend.CPU) for index, name in enumerate(methods)}
        plan = MethodPlan(next(iter(choices.values())), (), choices)
        encoded = {layer: CODECS[plan.weights(layer)].encode(weight, layer) for layer in choices}
        parts = {layer: {name: part.contiguous() for name, part in stored.items()} for layer, stored in encoded.items()}
        return verifier_linears(plan, parts, {}, dict.fromkeys(choices, (inputs, outputs)))[1].sizes

    alone = set(tiles("none")) & set(tiles("int8"))
    assert set(tiles("none", "int8")) == set(tiles("int8", "none")) == (alone or {1})


def test_bytes_are_shared_layer_by_layer(wide: Path) -> None:
    with running(
        wide, draft_quantization="w4a8", draft_overrides="lm_head=w8a8,layers.1.qkv=none",
        verify_quantization="int4", verify_overrides="lm_head=none",
    ) as stack:
        drafter = stack.drafter
        assert drafter is not None and drafter._attached is not None
        arena = drafter._attached.arena
        names = set(arena.names())
        assert {"weights/lm_head", "quantised/int4-g64/layers.1.qkv.codes"} <= names
        assert not any(name.startswith("quantised/") and "lm_head" in name for name in names)
        assert "weights/layers.0.qkv" not in names
        addresses = {arena.tensor(name).data_ptr(): name for name in names}
        shared = {}
        for layer, tensors in drafter._attached.parts.items():
            for part, tensor in tensors.items():
                shared[layer] = tensor.data_ptr() in addresses
                if shared[layer]:
                    assert addresses[tensor.data_ptr()] == f"quantised/int4-g64/{layer}.{part}"
        layers = linear_names(drafter._model.config)
        assert shared == {layer: layer != "layers.1.qkv" for layer in layers if layer != "lm_head"}
        drafting, verifying = drafter.forward, stack.verifier.forward
        assert isinstance(drafting, TorchForward) and isinstance(verifying, TorchForward)
        assert isinstance(drafting.decoder._layers[1].qkv, PlainLinear)
        assert isinstance(drafting.decoder._lm_head, Int8Linear)
        assert isinstance(drafting.decoder._layers[0].qkv, EmulatedLinear)
        assert isinstance(verifying.decoder._lm_head, TiledLinear)
        kernel = drafter.weights.kernel_name()
        assert kernel.startswith("emulated in torch fp32: int4-g64 weights") and "the verifier's weights" in kernel
        assert "torch fp32, its own weights" in kernel and kernel.endswith("activations per token")
        described = stack.verifier.describe()
        assert described.method == "int4 (g64, emulated; lm_head=none)"
        assert "int4-g64" in described.kernel and "; torch fp32, row tiles" in described.kernel


def test_the_drafter_reads_an_fp32_layer_of_the_arena(wide: Path) -> None:
    pair = {"draft_quantization": "w4a8", "draft_overrides": "lm_head=none", "verify_quantization": "int4",
            "verify_overrides": "lm_head=none"}
    with running(wide, **pair) as stack:
        drafter = stack.drafter
        assert drafter is not None and drafter._attached is not None
        (weight,) = drafter._attached.parts["lm_head"].values()
        assert weight.data_ptr() == drafter._attached.arena.tensor("weights/lm_head").data_ptr()
        assert not any(item.name.startswith("weights") for item in drafter.weights.memory)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair['draft_quantization']}-{pair['verify_quantization']}")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", ["llama_wide", "tied_wide"])
def test_the_budget_counts_every_byte(model_of: Callable[[str], Path], pair: dict[str, str], family: str) -> None:
    with running(model_of(family), **pair) as stack:
        arena, drafter = stack.verifier.arena, stack.drafter
        assert drafter is not None and drafter._attached is not None
        sizes = {name: arena.tensor(name).numel() * arena.tensor(name).itemsize for name in arena.names()}
        named = {item.name: item.bytes for item in stack.verifier.describe().memory if item.shared}
        kept = {"lm_head"} if drafter._model.config.tied_embeddings else set()
        linear = {f"weights/{name}" for name in linear_names(drafter._model.config) if name not in kept}
        for name in stack.verifier._methods.formats:
            expected = sum(
                size for region, size in sizes.items()
                if (region in linear if name == "fp32" else region.startswith(f"quantised/{name}/"))
            )
            assert named.get(f"weights {name}", 0) == expected
        assert sum(size for name, size in named.items() if name.startswith(("weights", "embeddings"))) == sum(
            size for name, size in sizes.items() if name.startswith(("weights/", "quantised/"))
        )
        own = {item.name: item.bytes for item in drafter.weights.memory}
        private: dict[str, int] = {}
        for layer, parts in drafter.weights.private.items():
            key = f"weights {drafter.weights.methods.weights(layer)}"
            private[key] = private.get(key, 0) + sum(part.numel() * part.itemsize for part in parts.values())
        if drafter.weights.packed:
            private["weights int8, packed"] = sum(layer.bytes for layer in drafter.weights.packed.values())
        assert {name: size for name, size in own.items() if name.startswith("weights")} == private


def test_bad_overrides_are_named(wide: Path, model: Path) -> None:
    with pytest.raises(InvalidInput, match=r"verify_overrides: 'layers\.7\.\*' matches no linear layer; there"):
        LocalVerifier.load(config(wide, verify_overrides="layers.7.*=int8"), progress=quiet, epoch=1)
    with pytest.raises(InvalidInput, match="draft_overrides: 'head' matches no linear layer"):
        LocalDrafter.load(config(wide, draft_overrides="head=int8"), progress=quiet)
    with pytest.raises(InvalidInput, match=r"layers\.0\.mlp_out: groups of 32 do not divide its 48 inputs"):
        LocalVerifier.load(config(model, verify_overrides="layers.0.mlp_out=int4:g32"), progress=quiet, epoch=1)
    told: list[str] = []
    with pytest.raises(InvalidInput, match="verify_overrides: unknown method"):
        LocalVerifier.load(
            config(wide, verify_overrides="*=int3"), progress=lambda text, _share: told.append(text), epoch=1)
    assert told == [], "before anything was done"


def test_workers_with_different_overrides_do_not_work_together(wide: Path) -> None:
    drafter = LocalDrafter.load(
        config(wide, draft_quantization="int8", draft_overrides="lm_head=none", verify_quantization="int8",
               verify_overrides="lm_head=none"),
        progress=quiet,
    )
    with (
        running(wide, draft_quantization="off", verify_quantization="int8") as stack,
        pytest.raises(InvalidInput, match=r"does not hold weights as fp32 \(lm_head\); give both workers the same"),
    ):
        stack.loop.attach_drafter(drafter)
