"""What ``auto`` stands for: which pairs are candidates, and which of them timed steps choose."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qspec.errors import InvalidInput
from qspec.pair_choice import CALL_S, CLOSE, DRAFT_LENGTHS, Candidate, StepTimes, candidate_pairs, choose_pair, kind
from qspec.pair_gain import PairCosts, predict_gain
from qspec.quant.methods import METHODS, Backend, Role, Support
from tools.check_imports import ROOT

NATIVE = Backend.CPU_NATIVE
FP32, FP16 = ("fp32-rows", "fp32"), ("fp16-planes", "fp32")
ROWS = (1, *(length + 1 for length in DRAFT_LENGTHS))


def names(draft: str, verify: str, backend: Backend = NATIVE) -> list[tuple[str, str]]:
    return [candidate.names for candidate in candidate_pairs(draft, verify, backend)]


def find(draft: str, verify: str) -> Candidate:
    return next(each for each in candidate_pairs("auto", "auto", NATIVE) if each.names == (draft, verify))


def times(fp32: float, fp16: float, **drafts: float) -> StepTimes:
    """Verify passes that cost the same for every number of rows; ``e4m3_plane=…`` is a draft step's seconds."""
    found = {FP32: dict.fromkeys(ROWS, fp32), FP16: dict.fromkeys(ROWS, fp16)}
    for each in candidate_pairs("auto", "auto", NATIVE):
        assert each.draft is not None
        weights, activations = kind(each.draft)
        name = weights.replace("-", "_") + ("" if activations == "fp32" else "_a8")
        if name in drafts:
            found[weights, activations] = {1: drafts[name]}
    return found


def test_a_verifier_left_to_auto_is_the_model_unquantised() -> None:
    assert {verify for _, verify in names("auto", "auto")} == {"none:fp32", "none:fp16"}
    assert {verify for _, verify in names("w8a8", "auto")} == {"none:fp32", "none:fp16"}
    assert {verify for _, verify in names("auto", "int8")} == {"int8:row"}


def test_every_candidate_has_real_kernels_and_a_cheaper_draft() -> None:
    for backend in Backend:
        for each in candidate_pairs("auto", "auto", backend):
            assert each.draft is not None
            assert each.verify.variant.on(backend, Role.VERIFY) is Support.REAL
            assert each.draft.variant.on(backend, Role.DRAFT) is Support.REAL
            assert each.draft.variant.bits_per_weight <= each.verify.variant.bits_per_weight
            assert kind(each.draft) != kind(each.verify)
            assert 0 < each.acceptance < 1


def test_torch_s_operations_have_one_real_pair() -> None:
    candidates = candidate_pairs("auto", "auto", Backend.CPU)
    choice = choose_pair(candidates, {})
    assert (choice.draft, choice.verify) == ("w8a8:row", "none:fp32")
    assert choice.reason == "w8a8:row drafting for none:fp32, the only pair with kernels here"


def test_named_methods_stay_as_they_are() -> None:
    assert names("off", "auto") == [("off", "none:fp32"), ("off", "none:fp16")]
    assert names("fp8", "auto") == [("fp8:row", "none:fp32"), ("fp8:plane", "none:fp16")]
    assert names("fp4:mxfp4", "int8", Backend.CPU) == [("fp4:mxfp4", "int8:row")]
    for draft, verify in names("auto", "int4"):
        assert verify == "int4:g64" and draft.startswith("w4a8:g64")


def test_nothing_to_choose_from_is_said() -> None:
    with pytest.raises(InvalidInput, match="draft_quantization: no drafter with kernels on cpu pays beside fp4"):
        candidate_pairs("auto", "fp4", Backend.CPU)
    with pytest.raises(InvalidInput, match="verify_quantization: unknown method 'int3'"):
        candidate_pairs("auto", "int3", NATIVE)


def test_rates_are_those_of_the_formula() -> None:
    chosen = choose_pair(
        [find("w8a8:row", "none:fp32"), find("fp8:plane", "none:fp16")],
        times(0.020, 0.010, int8_row_a8=0.004, e4m3_plane=0.009))
    gain = predict_gain(
        PairCosts(
            plain_step=0.020 + CALL_S, draft_step=0.004,
            verify_passes=tuple((k, 0.020 + 2 * CALL_S) for k in DRAFT_LENGTHS)),
        0.925)
    assert (chosen.draft, chosen.verify) == ("w8a8:row", "none:fp32")
    assert f"for {gain.plain_rate * gain.speed_up:.3g} tokens/s of one text (47.6 undrafted)" in chosen.reason
    assert "next is fp8:plane drafting for none:fp16, for " in chosen.reason


def test_among_close_rates_the_fewest_bytes_are_kept() -> None:
    pairs = [find("int8:row", "none:fp16"), find("fp8:plane", "none:fp16")]
    one_copy = choose_pair(pairs, times(1.0, 0.010, int8_row=0.0055, e4m3_plane=0.005))
    assert (one_copy.draft, one_copy.verify) == ("fp8:plane", "none:fp16")
    two_copies = choose_pair(pairs, times(1.0, 0.010, int8_row=0.004, e4m3_plane=0.006))
    assert two_copies.draft == "int8:row"
    assert [each.bits_per_weight for each in pairs] == [24, 16]
    assert 0 < CLOSE < 0.1


def test_a_pair_that_loses_counts_as_its_verifier_alone() -> None:
    """A draft length of 0 is always there; so a dear drafter does not keep a fast verifier from being chosen."""
    pairs = [find("w8a8:row", "none:fp32"), find("fp8:plane", "none:fp16")]
    chosen = choose_pair(pairs, times(0.020, 0.005, int8_row_a8=0.005, e4m3_plane=0.006))
    assert chosen.verify == "none:fp16" and "for 167 tokens/s of one text (167 undrafted)" in chosen.reason


def test_a_verifier_without_a_drafter_is_judged_by_its_own_steps() -> None:
    chosen = choose_pair(candidate_pairs("off", "auto", NATIVE), times(0.020, 0.010))
    assert (chosen.draft, chosen.verify) == ("off", "none:fp16")
    assert chosen.reason.startswith("none:fp16 alone, for 90.9 tokens/s")


def test_pairs_that_there_was_no_time_for_are_left_out() -> None:
    everything = candidate_pairs("auto", "auto", NATIVE)
    chosen = choose_pair(everything, {FP32: dict.fromkeys(ROWS, 0.02), ("int8-row", "fp32"): {1: 0.008}})
    assert (chosen.draft, chosen.verify) == ("int8:row", "none:fp32") and "next" not in chosen.reason


def test_every_name_that_auto_can_give_is_a_name_that_can_be_given() -> None:
    for draft, verify in names("auto", "auto"):
        assert names(draft, verify) == [(draft, verify)]
    assert {draft.partition(":")[0] for draft, _ in names("auto", "auto")} < set(METHODS)


def test_choosing_loads_no_tensor_library() -> None:
    code = "import sys, qspec.pair_choice; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
