"""What a pair is said to gain: the formula, the line, and that it rests on measured steps."""

from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qspec import QSPECModel
from qspec.api.method_choice import describe_gain
from qspec.api.step_costs import measure_costs
from qspec.config import DEFAULT_MODEL
from qspec.engine.backend import machine_backend
from qspec.pair_gain import ASSUMED_ACCEPTANCE, PairCosts, predict_gain
from qspec.quant.methods import METHODS, Backend
from tools.check_imports import ROOT

BEST = ("w8a8:row", "none:fp32")
"""What ``auto`` means on torch's operations."""


def costs(plain: float, draft: float, **passes: float) -> PairCosts:
    """``k4=…``: seconds of the pass that verifies four drafts."""
    verify_passes = tuple((int(name[1:]), seconds) for name, seconds in passes.items())
    return PairCosts(plain_step=plain, draft_step=draft, verify_passes=verify_passes)


def test_the_formula_by_hand() -> None:
    """measurements on a GPU: c = 0.54, v = 1.05, α = 0.95 make 1.41 at k = 4 (E = 4.524)."""
    gain = predict_gain(costs(0.01, 0.0054, k4=0.0105), acceptance=0.95)
    assert gain.draft_length == 4
    assert gain.c == pytest.approx(0.54)
    assert gain.v == pytest.approx(1.05)
    assert gain.speed_up == pytest.approx((1 - 0.95**5) / 0.05 / (4 * 0.54 + 1.05))
    assert gain.speed_up == pytest.approx(1.41, abs=0.005)
    assert gain.plain_rate == pytest.approx(100)
    assert gain.acceptance == 0.95


def test_the_best_draft_length_is_taken() -> None:
    assert predict_gain(costs(1, 0.1, k4=1.0, k2=1.0, k1=1.0)).draft_length == 4
    assert predict_gain(costs(1, 1.0, k4=1.0, k2=1.0, k1=1.0)).draft_length == 1
    assert predict_gain(costs(1, 1.0, k4=1.0, k2=1.0, k1=1.0)).speed_up == pytest.approx((1 + ASSUMED_ACCEPTANCE) / 2)


def test_a_drafter_as_dear_as_the_verifier_never_gains() -> None:
    for length in range(1, 9):
        assert predict_gain(costs(1, 1.0, **{f"k{length}": 1.0}), acceptance=1.0).speed_up <= 1


def test_the_line_names_figures_emulation_and_the_better_pair() -> None:
    line = describe_gain("fp8", "int8", Backend.CPU, BEST, predict_gain(costs(0.5, 0.4, k4=0.6)))
    assert line == (
        "fp8 -> int8: predicted 0.93 times plain int8 (2 -> 1.86 tokens/s) at draft length 4, from a draft step of "
        "0.80 and a verify pass of 1.20 plain steps, timed now, and an assumed acceptance of 0.9; fp8 and int8 are "
        "emulated on cpu, with the right numbers and no gain; a draft step reads 8 bits per weight and a verify pass "
        "8, so drafting gains nothing; w8a8:row -> none:fp32 gains more here"
    )
    assert "\n" not in line


def test_only_what_is_emulated_is_called_so() -> None:
    assert describe_gain("w8a8", "none", Backend.CPU, BEST) is None
    line = describe_gain("w8a8", "int8", Backend.CPU, BEST)
    assert line is not None and ": int8 is emulated" in line
    line = describe_gain("none", "none", Backend.CPU, BEST)
    assert line is not None and "emulated" not in line
    line = describe_gain("int4", "none", Backend.CPU, BEST)
    assert line is not None and ": int4 is emulated" in line and "bits per weight" not in line


def test_every_pair_but_the_best_has_a_line() -> None:
    gain = predict_gain(costs(1, 1, k1=1))
    for draft in METHODS:
        for verify in METHODS:
            line = describe_gain(draft, verify, Backend.CPU, BEST, gain)
            assert (line is None) == ((draft, verify) == ("w8a8", "none"))


def test_steps_are_timed_on_the_loaded_pair(pair: QSPECModel) -> None:
    found = measure_costs(pair.verify.engines)
    assert 0 < found.draft_step < 1
    assert 0 < found.plain_step < 1
    assert {length for length, _ in found.verify_passes} == {4, 2, 1}
    assert all(0 < seconds < 1 for _, seconds in found.verify_passes)


def test_a_model_for_short_drafts_is_timed_for_short_drafts(directory_of: Callable[[str], Path]) -> None:
    with QSPECModel(str(directory_of("llama")), "w8a8", "none", max_draft_length=2) as model:
        assert {length for length, _ in measure_costs(model.verify.engines).verify_passes} == {2, 1}


def test_the_defaults_are_the_default_model_and_the_paper_s_kind_of_pair(
    directory_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    defaults = {name: each.default for name, each in inspect.signature(QSPECModel).parameters.items()}
    assert (defaults["name"], defaults["draft_quantization"], defaults["verify_quantization"]) == (
        DEFAULT_MODEL, "fp8", "int8")
    with caplog.at_level(logging.WARNING, "qspec"):
        QSPECModel(str(directory_of("llama"))).close()
    (record,) = caplog.records
    assert re.match(r"fp8 -> int8: predicted \d+\.\d\d times plain int8 \(\S+ -> \S+ tokens/s\)", record.getMessage())
    reasons = {
        Backend.CPU: "fp8 and int8 are emulated on cpu",
        Backend.CPU_NATIVE: "a draft step reads 8 bits per weight and a verify pass 8",
    }
    assert reasons[machine_backend()] in record.getMessage()
    assert re.search(r"; \S+ -> none:fp(16|32) gains more here$", record.getMessage())


def test_choosing_a_pair_loads_no_tensor_library() -> None:
    code = "import sys, qspec.api.method_choice; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
