"""Workers take the codes that a checkpoint came with, and share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import Sampling
from qspec.models.converted import prepare
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS
from qspec.quant.methods import Backend, choose_verify
from tests.engine.stacks import SEEDED, config, generate, generate_alone, quiet, running, sequences
from tests.models.packed_checkpoints import write_packed


@pytest.fixture(scope="module")
def packed(model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPTQ checkpoint in groups of 64 with zero points."""
    model_of("llama")  # the cache of its own
    directory = tmp_path_factory.mktemp("packed") / "model"
    write_packed(directory, group_size=64, symmetric=False)
    return directory


def told_by_verifier(packed: Path, verify: str) -> list[str]:
    """What a start says."""
    told: list[str] = []
    settings = config(packed, verify_quantization=verify)
    LocalVerifier.load(settings, progress=lambda text, _share: told.append(text), epoch=1).close()
    return told


def test_the_name_alone_means_what_the_checkpoint_holds(packed: Path) -> None:
    with running(packed, draft_quantization="off", verify_quantization="int4") as stack:
        assert stack.verifier.describe().method == "int4 (g64-asymmetric, emulated)"
    with running(packed, draft_quantization="off", verify_quantization="int4:g64") as stack:
        assert stack.verifier.describe().method == "int4 (g64, emulated)"
    with running(packed, draft_quantization="off", verify_quantization="int8") as stack:
        assert stack.verifier.describe().method == "int8 (row, emulated)"


def test_the_most_frequent_format_decides() -> None:
    stored = {"a": "int8-g32", "b": "int4-g128", "c": "int4-g128"}
    assert choose_verify("int4", Backend.CPU, stored=stored).variant.name == "g128"
    assert choose_verify("int4:g32", Backend.CPU, stored=stored).variant.name == "g32"
    assert choose_verify("int8", Backend.CPU, stored=stored).variant.name == "row"
    assert choose_verify("int4", Backend.CPU, stored={}).variant.name == "g64"
    assert choose_verify("w4a8", Backend.CPU, stored={"a": "int4-plane-g64"}).variant.name == "plane"


def test_a_start_says_how_many_layers_came_quantised(packed: Path) -> None:
    line = "8 of 9 layers take their int4-g64-asymmetric codes from the checkpoint"
    assert line in told_by_verifier(packed, "int4")
    assert not any("from the checkpoint" in text for text in told_by_verifier(packed, "int4:g64"))
    told: list[str] = []
    settings = config(packed, draft_quantization="w4a8:g64-asymmetric")
    LocalDrafter.load(settings, progress=lambda text, _share: told.append(text))
    assert line in told


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("draft", ["w4a8", "w8a8", "int4:g32"])
def test_text_is_the_verifiers_own(packed: Path, draft: str) -> None:
    with running(packed, draft_quantization="off", verify_quantization="int4") as stack:
        expected = [
            generate_alone(stack.loop, sequences(sampling, draft_length=0, max_tokens=8))
            for sampling in (Sampling(), SEEDED)
        ]
    with running(packed, draft_quantization=draft, verify_quantization="int4") as stack:
        found = [
            generate(stack.loop, sequences(sampling, draft_length=3, max_tokens=8)) for sampling in (Sampling(), SEEDED)
        ]
    assert found == expected


@pytest.mark.usefixtures("kernels")
def test_the_arena_holds_the_checkpoints_codes_and_a_drafter_reads_them_there(packed: Path) -> None:
    model = prepare(str(packed), progress=quiet)
    with (
        running(packed, draft_quantization="w4a8", verify_quantization="int4") as stack,
        model.open_stored() as stored,
    ):
        assert stack.drafter is not None and stack.drafter._attached is not None
        assert len(stored) == 8 * 3
        ours = stack.drafter._attached.arena
        for name in stored:
            region = f"quantised/int4-g64-asymmetric/{name}"
            assert torch.equal(stack.verifier.arena.tensor(region), stored[name])
            layer, _, part = name.rpartition(".")
            assert stack.drafter._attached.parts[layer][part].data_ptr() == ours.tensor(region).data_ptr()


def test_a_private_copy_has_the_checkpoints_codes_too(packed: Path) -> None:
    model = prepare(str(packed), progress=quiet)
    drafter = LocalDrafter.load(config(packed, draft_quantization="int4:g64-asymmetric"), progress=quiet)
    with LayerWeights(model) as weights, model.open_stored() as stored:
        for name in model.stored:
            for part, tensor in drafter.weights.private[name].items():
                assert torch.equal(tensor, stored[f"{name}.{part}"])
        again = CODECS["int4-g64-asymmetric"].encode(weights.tensors["layers.0.qkv"].t(), "w")
        assert not torch.equal(again["codes"], stored["layers.0.qkv.codes"]), "what rounding again would do"
        lm_head = weights.parts("lm_head", "int4-g64-asymmetric")
        assert not weights.is_stored("lm_head", "int4-g64-asymmetric")
        assert torch.equal(drafter.weights.private["lm_head"]["codes"], lm_head["codes"])
