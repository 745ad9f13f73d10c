"""Every pair of methods: text with speculation is that without, and weights that can be shared are shared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec.engine.drafter import LocalDrafter
from qspec.engine.linears import is_packed
from qspec.engine.verifier import LocalVerifier
from qspec.errors import InvalidInput
from qspec.interfaces import Sampling
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.methods import METHODS, Backend, Support, choose_verify
from qspec.quant.native_formats import NATIVE_WEIGHTS
from qspec.quant.weight_formats import is_held_by
from tests.engine.stacks import SEEDED, Stack, config, generate, generate_alone, quiet, running, sequences
from tests.native_kernels import require_native

VARIANTS = [f"{method.name}:{variant.name}" for method in METHODS.values() for variant in method.variants]
SHARED = [
    ("fp8", "none:fp16"), ("fp8:plane-a8", "none:fp16"), ("none", "none:fp16"), ("int8", "int8"), ("w4a8", "int4"),
    ("w4a8", "int4:g32-asymmetric"), ("fp4", "int4"), ("int4", "int8:nibbles"), ("w4a8", "int8:nibbles"),
    ("w4a8", "int4:nf4"), ("w4a8", "int4:fp4"), ("int4:nf4", "int4:nf4"),
    ("fp8", "fp8"), ("fp4", "fp4:mxfp4"), ("none", "none"),
]


@pytest.fixture(scope="module")
def wide(model_of: Callable[[str], Path]) -> Path:
    """A model that every group size divides."""
    return model_of("llama_wide")


def stored(drafter: LocalDrafter | None) -> dict[str, Parts]:
    """What the attached drafter multiplies with."""
    assert drafter is not None and drafter._attached is not None
    return dict(drafter._attached.parts)


def texts(stack: Stack, draft_length: int | None) -> list[list[list[int]]]:
    """Greedy and seeded texts of one batch."""
    return [
        generate(stack.loop, sequences(sampling, draft_length=draft_length, max_tokens=8))
        for sampling in (Sampling(), SEEDED)
    ]


def alone(wide: Path, verify: str) -> list[list[list[int]]]:
    """The verifier's texts without a drafter, one at a time."""
    with running(wide, draft_quantization="off", verify_quantization=verify) as stack:
        return [
            generate_alone(stack.loop, sequences(sampling, draft_length=0, max_tokens=8))
            for sampling in (Sampling(), SEEDED)
        ]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("verify", VARIANTS)
def test_text_is_the_verifiers_own(wide: Path, verify: str) -> None:
    """With every method drafting for a method's first variant, and with two for the others."""
    expected = alone(wide, verify)
    method, _, variant = verify.partition(":")
    for draft in METHODS if variant == METHODS[method].variants[0].name else ("w4a8", method):
        with running(wide, draft_quantization=draft, verify_quantization=verify) as stack:
            assert texts(stack, 3) == expected, draft
            assert stack.verifier.describe().row_invariant


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("draft", VARIANTS)
def test_every_variant_drafts(wide: Path, draft: str) -> None:
    expected = alone(wide, "none")
    with running(wide, draft_quantization=draft) as stack:
        assert texts(stack, 4) == expected
        wanted = sequences(draft_length=4)
        generate(stack.loop, wanted)
        assert sum(sequence.stats.accepted for sequence in wanted) > 0


def assert_weights_are_the_arenas_own(stack: Stack) -> None:
    """Every part that the drafter multiplies with is a region, at the same place of the same file as the verifier's."""
    drafter = stack.drafter
    assert drafter is not None and drafter._attached is not None
    arena, parts = drafter._attached.arena, stored(drafter)
    regions = {region.name: region for region in arena.descriptor.regions}
    addresses = {arena.tensor(name).data_ptr(): name for name in arena.names()}
    assert len(parts) == 9
    for layer, tensors in parts.items():
        for part, tensor in tensors.items():
            region = regions[addresses[tensor.data_ptr()]]
            assert region.name.endswith(f"/{layer}.{part}" if part else f"/{layer}")
            assert region.file > 0
            mine, theirs = (os.fstat(fds[region.file]) for fds in (arena.fds, stack.verifier.arena.fds))
            assert os.path.samestat(mine, theirs)
            assert region in stack.verifier.arena.descriptor.regions
    private = [item.name for item in drafter.weights.memory]
    assert not any(name.startswith("weights") for name in private)
    assert "the verifier's weights" in drafter.weights.kernel_name()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("draft", "verify"), SHARED)
def test_weights_that_can_be_shared_are_the_arenas_own_bytes(wide: Path, draft: str, verify: str) -> None:
    with running(wide, draft_quantization=draft, verify_quantization=verify) as stack:
        assert_weights_are_the_arenas_own(stack)


def test_w8a8_reads_the_int8_codes_in_place_on_native_kernels(wide: Path) -> None:
    require_native()
    with running(wide, kernels="native", draft_quantization="w8a8", verify_quantization="int8") as stack:
        assert_weights_are_the_arenas_own(stack)


def test_int8_weights_of_w8a8_are_those_of_the_store_in_another_packing(wide: Path) -> None:
    with running(wide, draft_quantization="w8a8", verify_quantization="int8") as stack:
        assert stack.drafter is not None
        assert stored(stack.drafter) == {}
        assert [(item.name, item.shared) for item in stack.drafter.weights.memory] == [("weights int8, packed", False)]
        names = stack.verifier.arena.names()
        with stack.drafter._model.open_int8() as packed:
            for name in packed:
                assert torch.equal(
                    stack.verifier.arena.tensor(f"quantised/int8-row/{name}").flatten(), packed[name].flatten()
                )
                assert f"quantised/int8-row/{name}" in names


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("verify", VARIANTS)
def test_the_budget_counts_every_byte(wide: Path, verify: str) -> None:
    for draft in ("int4:g128", "none"):
        with running(wide, draft_quantization=draft, verify_quantization=verify) as stack:
            assert stack.drafter is not None
            chosen, drafting = stack.verifier._methods.default, stack.drafter.weights.methods.default
            assert not is_packed(drafting)
            arena = stack.verifier.arena
            weights = sum(
                arena.tensor(name).numel() * arena.tensor(name).itemsize
                for name in arena.names() if name.startswith(("weights/", "quantised/"))
            )
            shared = [item for item in stack.verifier.describe().memory if item.shared]
            named = [item.bytes for item in shared if item.name.startswith(("weights", "embeddings"))]
            assert sum(named) == weights
            own = {item.name: item.bytes for item in stack.drafter.weights.memory}
            name = f"weights {drafting.variant.weights}"
            if is_held_by(drafting.variant.weights, chosen.variant.weights):
                assert name not in own
            else:
                assert own[name] == sum(
                    tensor.numel() * tensor.itemsize for parts in stored(stack.drafter).values()
                    for tensor in parts.values()
                )


def test_what_is_emulated_says_so(wide: Path) -> None:
    for spelled in VARIANTS:
        choice = choose_verify(spelled, Backend.CPU)
        told: list[str] = []

        def tell(text: str, _share: float | None, told: list[str] = told) -> None:
            told.append(text)

        verifier = LocalVerifier.load(config(wide, verify_quantization=spelled), progress=tell, epoch=1)
        described = verifier.describe()
        emulated = any("emulated" in text for text in told)
        assert ("emulated" in described.kernel) == emulated
        assert ("emulated" in described.method) == emulated
        real = {role.value: choice.variant.on(Backend.CPU, role) for role in choice.variant.support[Backend.CPU]}
        assert emulated == (real["verify_quantization"] is Support.EMULATED)
        assert described.method.startswith(spelled.partition(":")[0])
        verifier.close()


def test_weights_that_fp16_cannot_hold_are_counted(wide: Path) -> None:
    told: list[str] = []
    verifier = LocalVerifier.load(
        config(wide, verify_quantization="none:fp16"), progress=lambda text, _share: told.append(text), epoch=1
    )
    verifier.close()
    (message,) = [text for text in told if "rounded" in text]
    rounded, total = (int(word) for word in message.split() if word.isdigit())
    assert 0.9 * total < rounded <= total, "random fp32 weights"


def test_an_embedding_stays_in_fp32_beside_a_quantised_head(
    model_of: Callable[[str], Path], kernels: str
) -> None:
    with running(model_of("llama3"), draft_quantization="fp8", verify_quantization="int8") as stack:
        names = stack.verifier.arena.names()
        embedding = "weights/lm_head" if kernels == "torch" else "weights/embed"
        assert {embedding, "quantised/int8-row/lm_head.codes"} <= set(names)
        assert "weights/layers.0.qkv" not in names
        expected = generate_alone(stack.loop, sequences(draft_length=0, max_tokens=6))
        assert generate(stack.loop, sequences(draft_length=3, max_tokens=6)) == expected


def test_bad_pairs_are_named(model: Path, wide: Path) -> None:
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv: groups of 64 do not divide its 32 inputs"):
        LocalVerifier.load(config(model, verify_quantization="int4"), progress=quiet, epoch=1)
    with pytest.raises(InvalidInput, match=r"mlp_out: groups of 32 do not divide its 48 inputs"):
        LocalDrafter.load(config(model, draft_quantization="int4:g32"), progress=quiet)
    drafter = LocalDrafter.load(
        config(wide, draft_quantization="int8", verify_quantization="int8"), progress=quiet
    )
    with (
        running(wide, draft_quantization="off", verify_quantization="int4") as stack,
        pytest.raises(InvalidInput, match="verify_quantization: the arena does not hold weights as int8-row"),
    ):
        stack.loop.attach_drafter(drafter)


def test_codecs_of_all_variants_exist() -> None:
    variants = {variant.weights for method in METHODS.values() for variant in method.variants}
    assert variants | set(NATIVE_WEIGHTS.values()) == set(CODECS)
