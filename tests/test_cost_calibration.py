"""What warm-up measures, and how it reads that where calls jitter by as much as they differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qspec.cost_calibration import CostRecorder, WarmUpRun, further_runs, necessary_runs
from qspec.interfaces import VerifierDescription
from tests.fakes import FakeVerifier


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
