"""What warm-up measures, and how it reads that where calls jitter by as much as they differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qspec.cost_calibration import CostRecorder, WarmUpRun, calibrate, further_runs, make_run, necessary_runs
from qspec.cost_table import CalibratedCosts
from qspec.interfaces import VerifierDescription
from qspec.speculation import SpeculationLoop
from tests.fakes import FakeDrafter, FakeVerifier


def about(**limits: int) -> VerifierDescription:
    return replace(FakeVerifier().describe(), **{  # type: ignore[arg-type]
        "max_slots": 64, "num_blocks": 4096, "block_size": 16, "max_model_len": 1024, **limits})


def test_what_a_position_costs_is_taken_from_the_calls_that_read_most() -> None:
    recorder, rate, jitter_s = CostRecorder(), 3e-8, 9e-4
    for sequences, near, far in ((1, 32, 256), (16, 64, 4096)):
        recorder.observe_draft([sequences] * 8, near, 0.005 + 8 * near * rate)
        recorder.observe_draft([sequences] * 8, far, 0.005 + 8 * far * rate + jitter_s)
        recorder.observe_verify(9 * sequences, near, 0.002 + near * 8 * rate)
        recorder.observe_verify(9 * sequences, far, 0.002 + far * 8 * rate + jitter_s)
    found = recorder.fit()
    assert found.draft_context_s == pytest.approx(rate + jitter_s / 8 / (4096 - 64))
    assert found.verify_context_s == pytest.approx(8 * rate + jitter_s / (4096 - 64))


def test_a_machine_that_is_fast_measures_many_long_prompts_at_once() -> None:
    runs = (*necessary_runs(8), *further_runs(8, about()))
    assert runs[-2:] == tuple(WarmUpRun(sequences=16, draft_length=length, prompt=256) for length in (0, 8))
    assert runs[-4].sequences == 64, "the dearest come last"


@pytest.mark.parametrize("limits", [
    {"max_slots": 15}, {"num_blocks": 16 * 19 - 1}, {"max_model_len": 291},
])
def test_where_they_do_not_fit_there_are_none(limits: dict[str, int]) -> None:
    assert WarmUpRun(sequences=16, draft_length=8, prompt=256) not in further_runs(8, about(**limits))


def test_without_a_drafter_nothing_is_drafted() -> None:
    assert {run.draft_length for run in (*necessary_runs(0), *further_runs(0, about()))} == {0}


@pytest.fixture
def loop() -> SpeculationLoop:
    """Over workers that have room for the dearest runs, and prompts that may add no time to a round."""
    loop = SpeculationLoop(max_prefill_s=1e-9)
    verifier = FakeVerifier(max_slots=16, num_blocks=512, block_size=16, max_model_len=512, max_batch_rows=512)
    loop.attach_verifier(verifier)
    loop.attach_drafter(FakeDrafter(verifier))
    return loop


@pytest.mark.parametrize("length", [0, 8])
def test_all_of_a_batch_of_long_prompts_is_measured_at_once(loop: SpeculationLoop, length: int) -> None:
    loop.cost_recorder = recorder = CostRecorder()
    make_run(loop, WarmUpRun(sequences=16, draft_length=length, prompt=256))
    assert not loop.has_work
    if length:
        assert [context >= 16 * 256 for fed, context in recorder.draft if fed == (16,) * 8] == [True]
    rows = 16 * (1 + length)
    assert any(context >= 16 * 256 for decided, context in recorder.verify if decided == rows), recorder.verify


@pytest.mark.parametrize(("row_s", "measured"), [(1e-5, True), (2e-3, False)])
def test_many_positions_are_only_read_where_that_is_quick(
    loop: SpeculationLoop, row_s: float, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CostRecorder, "prefill_row_s", property(lambda _: row_s))
    made: list[WarmUpRun] = []
    monkeypatch.setattr("qspec.cost_calibration.make_run", lambda _, run: made.append(run))
    monkeypatch.setattr(CostRecorder, "fit", lambda _: CalibratedCosts())
    calibrate(loop, lambda _what, _share: None)
    assert any(run.many_positions for run in made) is measured


def test_the_costs_of_a_pass_are_those_of_one_row_a_sequence() -> None:
    """Where attention is dear, nine rows of a sequence that read the same positions cost nine times as much."""
    recorder, rate = CostRecorder(), 1e-6
    for rows, near, far in ((1, 32, 256), (9, 33, 258)):
        for context in (near, far):
            recorder.observe_verify(rows, context, 0.01 + rows * context * rate)
    assert recorder.fit().verify_context_s == pytest.approx(rate)
