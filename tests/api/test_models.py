"""Loading models by name and method: logits, views of one copy of the weights, and what is refused."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qspec
from qspec import QSPECModel, QuantizationMethod, QuantizedModel, autoregressive_sampling, qspec_sampling
from qspec.api.auto_pair import auto_pair
from qspec.api.loaded_models import MOST_MODELS, loaded_model, loaded_pair, release_models
from qspec.api.method_choice import describe_gain
from qspec.engine.backend import machine_backend
from qspec.errors import InvalidInput, ModelError, QspecError
from qspec.pair_choice import candidate_pairs
from qspec.quant.methods import METHODS, Backend
from tests.api.conftest import Loader
from tests.native_kernels import require_native
from tests.tiny_models import FAMILIES

TOKENS = torch.tensor([[5, 9, 5, 9, 5, 17], [250, 4, 8, 8, 8, 8]])


def test_importing_qspec_loads_no_tensor_library() -> None:
    code = "import qspec, sys; assert 'QSPECModel' in dir(qspec); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_all_public_names_are_there() -> None:
    assert all(getattr(qspec, name).__name__ == name for name in qspec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qspec.nothing  # noqa: B018


def test_the_enumeration_has_every_method() -> None:
    assert {method.value for method in QuantizationMethod} == set(METHODS)
    assert str(QuantizationMethod.W8A8) == "w8a8"


# ---- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_of_every_family_are_those_of_transformers(
    load: Loader, directory_of: Callable[[str], Path], family: str
) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(directory_of(family)).eval()
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    logits = load(family)(TOKENS)
    assert logits.shape == (2, 6, load(family).vocab_size)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=2e-4)


def test_quantised_logits_are_close_and_not_equal(load: Loader, pair: QSPECModel) -> None:
    exact = load("llama")(TOKENS)
    for quantised in (load("llama", "w8a8")(TOKENS), pair.draft(TOKENS)):
        ratio_db = 20 * torch.log10(exact.norm() / (exact - quantised).norm())
        assert 20 < ratio_db < 60


def test_rows_and_later_positions_change_no_bit(load: Loader) -> None:
    model = load("llama")
    whole = model(TOKENS)
    assert torch.equal(model(TOKENS[1:, :4])[0], whole[1, :4])


def test_both_sides_read_one_copy(pair: QSPECModel, load: Loader) -> None:
    assert torch.equal(pair.verify(TOKENS), load("llama")(TOKENS))
    assert pair.draft.engines is pair.verify.engines
    assert (pair.draft.quantization_method, pair.verify.quantization_method) == ("w8a8", "none")
    assert repr(pair).startswith("QSPECModel(")


def test_the_drafter_reads_the_very_files_of_the_verifiers_weights(directory_of: Callable[[str], Path]) -> None:
    with QSPECModel(str(directory_of("llama")), "none", "none") as model:
        ours, theirs = model.verify.engines.verifier.arena, model.verify.engines.drafter._attached.arena
        assert len(ours.fds) > 1
        assert all(os.path.samestat(os.fstat(a), os.fstat(b)) for a, b in zip(ours.fds, theirs.fds, strict=True))
        assert ours.descriptor.regions == theirs.descriptor.regions
        assert model.draft.engines is model.verify.engines


# ---- methods --------------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_those_there_are(directory_of: Callable[[str], Path]) -> None:
    name = str(directory_of("llama"))
    with pytest.raises(InvalidInput, match=r"unknown method 'int7'; choose one of: none, .*w8a8"):
        QuantizedModel(name, "int7")
    with pytest.raises(InvalidInput) as caught:
        QSPECModel(name, "int7", "fp3")
    assert [violation.field for violation in caught.value.violations] == ["draft_quantization", "verify_quantization"]
    with pytest.raises(InvalidInput, match="nothing to draft with"):
        QSPECModel(name, "off", "none")
    with pytest.raises(InvalidInput, match="unknown method"):
        qspec_sampling(TOKENS, name, "int7", "none")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_or_says_what_does(directory_of: Callable[[str], Path], method: str) -> None:
    try:
        model = QuantizedModel(str(directory_of("llama")), method)
    except InvalidInput as error:
        assert "choose one of: none" in str(error) or "group" in str(error), "the model is narrower than most groups"
    else:
        with model:
            assert bool(model(TOKENS).isfinite().all())


def test_the_default_pair_works_or_says_what_does(directory_of: Callable[[str], Path]) -> None:
    try:
        model = QSPECModel(str(directory_of("llama")))
    except InvalidInput as error:
        assert "choose one of" in str(error)
    else:
        with model:
            assert qspec_sampling(TOKENS, model, max_len=2).shape == (2, 8)


def test_a_pair_that_gains_nothing_says_so_and_names_one_that_does(
    directory_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qspec"):
        QSPECModel(str(directory_of("llama")), "auto", "auto").close()
        assert not caplog.records
        QSPECModel(str(directory_of("llama")), "none", "none").close()
    (record,) = caplog.records
    assert "reads 32 bits per weight" in record.message
    best = auto_pair(str(directory_of("llama")), "auto", "auto")
    assert record.message.endswith(f"; {best[0]} -> {best[1]} gains more here")
    assert describe_gain(*best, machine_backend(), best) is None


def test_a_pair_that_only_its_steps_speak_against_is_announced_too(
    directory_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Real kernels, a drafter that reads fewer bits, and yet not the pair that promises most."""
    require_native()
    name = str(directory_of("llama"))
    best = auto_pair(name, "auto", "auto")
    draft, verify = next(
        each.names for each in candidate_pairs("auto", "auto", Backend.CPU_NATIVE)
        if each.names != best and describe_gain(*each.names, Backend.CPU_NATIVE, best) is None)
    with caplog.at_level(logging.WARNING, "qspec"):
        QSPECModel(name, draft, verify).close()
    (record,) = caplog.records
    assert record.message.startswith(f"{draft} -> {verify}: predicted ")
    assert record.message.endswith(f"; {best[0]} -> {best[1]} gains more here")


def test_another_device_is_refused(directory_of: Callable[[str], Path]) -> None:
    for device in ("tpu", torch.device("meta")):
        with pytest.raises(InvalidInput, match="device: no kernels for"):
            QuantizedModel(str(directory_of("llama")), "none", device)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        QuantizedModel(str(tmp_path))


# ---- how long models are kept ---------------------------------------------------------------------------------------


def test_a_named_model_is_loaded_once(directory_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    release_models()
    name = str(directory_of("llama"))
    assert loaded_model(name, "none", "cpu") is loaded_model(name, "none", "cpu")
    pair = loaded_pair(name, "auto", "auto", "cpu", 4)
    assert loaded_pair(name, "w8a8", "none", "cpu", 4) is not pair
    assert loaded_pair(name, "auto", "auto", "cpu", 8) is pair
    assert loaded_pair(name, "auto", "auto", "cpu", 9) is not pair
    first = loaded_model(name, "none", "cpu")
    for gamma in range(10, 10 + MOST_MODELS):
        loaded_pair(name, "auto", "auto", "cpu", gamma)
    assert loaded_model(name, "none", "cpu") is not first
    with pytest.raises(QspecError, match="was closed"):
        first(TOKENS)
    release_models()


def test_a_closed_model_says_so(directory_of: Callable[[str], Path]) -> None:
    with QuantizedModel(str(directory_of("llama"))) as model:
        pass
    model.close()
    with pytest.raises(QspecError, match="was closed; make the model anew"):
        autoregressive_sampling(TOKENS, model, 2)


# ---- single layers under another method -----------------------------------------------------------------------------


def test_overrides_of_a_pair_and_of_one_model(directory_of: Callable[[str], Path]) -> None:
    name = str(directory_of("llama_wide"))
    with (
        QSPECModel(name, "w4a8", "int4", draft_overrides="lm_head=w8a8", verify_overrides="lm_head=none") as mixed,
        QuantizedModel(name, "int4", overrides="lm_head=none") as alone,
        QuantizedModel(name, "int4") as int4,
    ):
        assert torch.equal(mixed.verify(TOKENS), alone(TOKENS))
        assert not torch.equal(alone(TOKENS), int4(TOKENS))
        expected = autoregressive_sampling(TOKENS, alone, 12, temperature=0.0)
        assert torch.equal(qspec_sampling(TOKENS, mixed, max_len=12, gamma=3, temperature=0.0), expected)


def test_overrides_that_cannot_be_are_named_together_with_their_field(directory_of: Callable[[str], Path]) -> None:
    name = str(directory_of("llama_wide"))
    with pytest.raises(InvalidInput, match="draft_overrides: 'x' is not GLOB=METHOD"):
        QSPECModel(name, "w8a8", "none", draft_overrides="x")
    with pytest.raises(InvalidInput, match="verify_overrides: 'x' matches no linear layer"):
        QuantizedModel(name, "none", overrides="x=int8")
