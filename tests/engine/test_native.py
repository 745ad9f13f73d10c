"""Engines on native kernels: the numbers of every family, what is shared, what is said where they cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.engine import backend
from qspec.engine.drafter import LocalDrafter
from qspec.engine.native_forward import NativeForward
from qspec.engine.torch_forward import TorchForward
from qspec.engine.verifier import LocalVerifier
from qspec.errors import InvalidInput
from qspec.interfaces import Sampling
from qspec.kernels.native import NativeUnavailable
from qspec.models.converted import prepare
from qspec.quant.methods import Backend
from qspec.speculation import SpeculationLoop
from tests.engine.stacks import SEEDED, config, generate, generate_alone, quiet, running, sequences
from tests.native_kernels import require_native
from tests.tiny_models import FAMILIES, build_tiny_model

TOLERANCE = 1e-4
REASON = "no native kernels: install a C++ compiler (Debian package g++) and install qspec-serve again"


@pytest.fixture
def native() -> None:
    """Native kernels have to be there."""
    require_native()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that had no compiler."""

    def absent() -> object:
        raise NativeUnavailable(REASON)

    monkeypatch.setattr(backend, "load", absent)


def told_by_verifier(model: Path, **changes: str) -> list[str]:
    """What a start says."""
    told: list[str] = []
    LocalVerifier.load(config(model, **changes), progress=lambda text, _share: told.append(text), epoch=1).close()
    return told


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(native: None, family: str, model_of: Callable[[str], Path]) -> None:
    token_ids = torch.randint(0, 320, (48,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = build_tiny_model(family)(token_ids[None]).logits[0]
    with running(model_of(family), kernels="native", draft_quantization="off") as stack:
        for rows in (48, 11, 1):
            found = stack.verifier.cached_decoder(3).score(tuple(token_ids.tolist()), rows)
            assert (found - expected).abs().max() <= TOLERANCE
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen3_tied", "gpt2"])
@pytest.mark.parametrize("verify", ["none", "none:fp16", "int8"])
def test_greedy_text_is_that_of_torchs_operations(
    native: None, family: str, verify: str, model_of: Callable[[str], Path]
) -> None:
    texts = []
    for kernels in ("torch", "native"):
        with running(model_of(family), kernels=kernels, verify_quantization=verify) as stack:
            texts.append(generate(stack.loop, sequences(draft_length=3)))
    assert texts[0] == texts[1]


def test_a_draft_of_the_same_weights_is_what_verification_decides(native: None, model: Path) -> None:
    """One chain per output: the drafter's row has the bits of the verifier's."""
    with running(model, kernels="native", draft_quantization="none") as stack:
        for sampling in (Sampling(), SEEDED):
            wanted = sequences(sampling, draft_length=4)
            generate(stack.loop, wanted)
            assert sum(each.stats.drafted for each in wanted) > 0
            # Drafts behind a text's last token are not accepted; all others are.
            assert sum(each.stats.drafted - each.stats.accepted for each in wanted) <= 4 * len(wanted)


def test_a_greedy_step_computes_logits_only_for_a_confidence(
    native: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    logits = NativeForward.logits

    def noted(forward: NativeForward, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(forward, hidden)

    monkeypatch.setattr(NativeForward, "logits", noted)
    with running(model, kernels="native") as stack:
        assert stack.drafter is not None
        plain = generate(stack.loop, sequences())
        assert rows == []
        confident = SpeculationLoop(early_stop=True)
        confident.attach_verifier(stack.verifier)
        confident.attach_drafter(stack.drafter)
        wanted = sequences()
        assert generate(confident, wanted) == plain
        assert sum(rows) >= sum(each.stats.drafted for each in wanted) > 0


@pytest.mark.parametrize(("verify", "beside"), [("none", False), ("none:fp16", False), ("int8", True)])
def test_a_tied_embedding_lies_once_where_the_head_is_precise(
    native: None, model_of: Callable[[str], Path], verify: str, beside: bool
) -> None:
    model = model_of("tied_wide")
    with running(model, kernels="native", draft_quantization="off", verify_quantization=verify) as stack:
        names = stack.verifier.arena.names()
        assert ("weights/embed" in names) is beside
        assert "weights/lm_head" not in names
        assert not any("dequantised" in item.name for item in stack.verifier.describe().memory)


def test_int8_codes_of_a_private_drafter_are_those_of_the_converted_file(native: None, model: Path) -> None:
    drafter = LocalDrafter.load(config(model, kernels="native"), progress=quiet)
    with prepare(str(model), progress=quiet).open_int8() as int8:
        for name, parts in drafter.weights.private.items():
            assert torch.equal(parts["codes"], int8[f"{name}.codes"])
            assert torch.equal(parts["scales"].flatten(), int8[f"{name}.scales"])


@pytest.mark.parametrize("pair", [
    {"draft_quantization": "fp4", "verify_quantization": "none"},
    {"draft_quantization": "fp4", "verify_quantization": "none:fp16"},
    {"draft_quantization": "fp4", "verify_quantization": "int4"},
    {"draft_quantization": "w8a8", "verify_quantization": "fp4"},
    {"draft_quantization": "none", "verify_quantization": "none", "verify_overrides": "lm_head=fp4"},
], ids=lambda pair: "-".join(pair.values()))
@pytest.mark.parametrize("family", ["llama_wide", "tied_wide"])
def test_an_emulated_worker_runs_on_torch_beside_a_native_one(
    native: None, model_of: Callable[[str], Path], pair: dict[str, str], family: str
) -> None:
    model = model_of(family)
    with running(model, kernels="native", **{**pair, "draft_quantization": "off"}) as stack:
        expected = generate_alone(stack.loop, sequences(SEEDED, draft_length=0, max_tokens=8))
    with running(model, kernels="native", **pair) as stack:
        assert stack.drafter is not None
        kinds = {type(stack.drafter.forward), type(stack.verifier.forward)}
        assert kinds == {NativeForward, TorchForward}
        wanted = sequences(SEEDED, draft_length=3, max_tokens=8)
        assert generate(stack.loop, wanted) == expected
        assert sum(each.stats.accepted for each in wanted) > 0


def test_a_fallback_names_what_has_no_kernel(native: None, model_of: Callable[[str], Path]) -> None:
    line = "the verifier runs on torch's operations: no native kernel for nvfp4 weights with nvfp4 activations"
    assert line in told_by_verifier(model_of("llama_wide"), kernels="auto", verify_quantization="fp4")
    assert not any("torch" in text for text in told_by_verifier(model_of("llama_wide"), kernels="auto"))


def test_a_machine_without_native_kernels_runs_on_torch_and_says_so(without_native: None, model: Path) -> None:
    assert f"{REASON}; torch's operations are used" in told_by_verifier(model, kernels="auto")
    assert not any(REASON in text for text in told_by_verifier(model, kernels="torch"))
    with pytest.raises(InvalidInput, match=r"^kernels: no native kernels: install a C\+\+ compiler"):
        LocalVerifier.load(config(model, kernels="native"), progress=quiet, epoch=1)
    assert backend.machine_backend() is Backend.CPU
    assert REASON in backend.describe_backend(Backend.CPU)


def test_a_model_that_the_kernels_cannot_run_is_told(native: None, model: Path) -> None:
    architecture = replace(prepare(str(model), progress=quiet).config, head_dim=7)
    told: list[str] = []
    chosen = backend.choose_backend(config(model, kernels="auto"), architecture, lambda text, _share: told.append(text))
    assert chosen is Backend.CPU
    assert told == ["no native kernels for rotary positions in an odd head dimension (7); torch's operations are used"]


@pytest.mark.parametrize(("first", "second"), [("torch", "native"), ("native", "torch")])
def test_workers_on_different_kernels_do_not_share_weights(
    native: None, model: Path, first: str, second: str
) -> None:
    drafter = LocalDrafter.load(config(model, kernels=second, draft_quantization="none"), progress=quiet)
    with (
        running(model, kernels=first, draft_quantization="off") as stack,
        pytest.raises(InvalidInput, match="give both workers the same methods, overrides and kernels"),
    ):
        stack.loop.attach_drafter(drafter)


def test_torchs_threads_rest_while_the_kernels_compute(native: None, model: Path) -> None:
    with running(model, kernels="native", draft_quantization="off") as stack:
        torch.set_num_threads(2)
        with stack.verifier.forward.computing():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
