"""The cost table says what was calibrated, follows a machine that changes, and shrugs disturbances off."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from qspec.cost_calibration import CostRecorder
from qspec.cost_table import CalibratedCosts, CostTable, Curve

CALIBRATED = CalibratedCosts(
    verify=((1, 0.02), (5, 0.03), (9, 0.04), (72, 0.2)), draft_step=((1, 0.008), (8, 0.015)), draft_call_s=0.002,
    verify_context_s=1e-6, draft_context_s=2e-6)


def test_what_was_calibrated_is_what_is_predicted() -> None:
    table = CostTable(CALIBRATED)
    assert table.verify_seconds(5) == pytest.approx(0.03)
    assert table.verify_seconds(7) == pytest.approx(0.035)
    assert table.verify_seconds(72 + 63) == pytest.approx(0.36)
    assert table.verify_seconds(5, context=1000) == pytest.approx(0.031)
    assert table.draft_seconds([]) == 0.0
    assert table.draft_seconds([1, 1, 1]) == pytest.approx(0.002 + 3 * 0.008)
    assert table.draft_seconds([8, 1], context=800) == pytest.approx(0.002 + 0.023 + 800 * 2e-6 * (1 + 1 / 8))
    assert not CostTable().known
    assert CostTable().verify_seconds(3) == CostTable().draft_seconds([1]) == 0.0


def test_a_curve_need_not_rise() -> None:
    curve = Curve(((1, 0.04), (3, 0.05), (4, 0.03)))
    assert [curve.at(rows) for rows in (2, 3, 4, 8)] == pytest.approx([0.045, 0.05, 0.03, 0.03])


def test_one_outlier_changes_nothing_and_several_little() -> None:
    table = CostTable(CALIBRATED)
    table.observe_verify(5, 0, 10.0)
    table.observe_draft([1, 1], 0, 10.0)
    assert table.verify_seconds(5) == pytest.approx(0.03)
    assert table.draft_seconds([1, 1]) == pytest.approx(0.018)
    source = random.Random(1)
    worst = 0.0
    for _ in range(2000):
        delayed = 20 if source.random() < 0.05 else 1
        table.observe_verify(5, 0, 0.03 * delayed * source.lognormvariate(0, 0.05))
        worst = max(worst, abs(table.verify_seconds(5) / 0.03 - 1))
    assert worst < 0.1


def test_another_process_for_a_while_is_forgotten_soon() -> None:
    table = CostTable(CALIBRATED)
    for _ in range(30):
        table.observe_verify(5, 0, 0.3)
    assert table.verify_seconds(5) > 0.06, "thirty in a row are no accident"
    for _ in range(40):
        table.observe_verify(5, 0, 0.03)
    assert table.verify_seconds(5) == pytest.approx(0.03, rel=0.15)


@pytest.mark.parametrize("factor", [0.4, 0.8, 1.3, 3.0])
def test_a_machine_that_changed_is_believed(factor: float) -> None:
    table = CostTable(CALIBRATED)
    for _ in range(100):
        table.observe_verify(5, 0, 0.03 * factor)
        table.observe_draft([1, 1], 0, 0.018 * factor)
    assert table.verify_seconds(5) == pytest.approx(0.03 * factor, rel=0.03)
    assert table.draft_seconds([1, 1]) == pytest.approx(0.018 * factor, rel=0.05)
    other = table.verify_seconds(9) / 0.04
    assert 1 < other < factor or factor < other < 1, "other counts follow some of the way"


def test_bad_luck_fades_where_nothing_is_measured_any_more() -> None:
    table = CostTable(CALIBRATED)
    for _ in range(40):
        table.observe_verify(9, 0, 0.12)
    spoilt = table.verify_seconds(9)
    assert spoilt > 0.08
    for _ in range(3000):
        table.observe_verify(5, 0, 0.03)
        table.observe_verify(1, 0, 0.02)
    assert table.verify_seconds(9) < 0.06 < spoilt


def test_counts_that_were_not_calibrated_are_learnt_at_once() -> None:
    table = CostTable(CALIBRATED)
    table.observe_verify(200, 0, 0.7)
    assert table.verify_seconds(200) == pytest.approx(0.7)
    empty = CostTable()
    empty.observe_verify(1, 0, 0.02)
    empty.observe_draft([1], 0, 0.01)
    assert empty.known
    assert (empty.verify_seconds(1), empty.draft_seconds([1])) == (pytest.approx(0.02), pytest.approx(0.01))
    empty.observe_verify(8, 0, 0.05)
    assert empty.verify_seconds(8) == pytest.approx(0.05)


def test_the_table_stays_small() -> None:
    curve = Curve(((1, 0.01),))
    source = random.Random(2)
    for _ in range(3000):
        rows = source.randint(1, 600)
        curve.observe(rows, 0.01 + 0.0001 * rows)
    assert len(curve._counts) < 60
    rows = np.array([1.0, 30.0, 100.0, 600.0])
    np.testing.assert_allclose(curve.table(rows), 0.01 + 0.0001 * rows, rtol=0.05)


def test_calibration_finds_the_costs_behind_the_measurements() -> None:
    truth = CostTable(CALIBRATED)
    recorder = CostRecorder()
    for context in (32, 256, 1024):
        recorder.observe_verify(1, context, truth.verify_seconds(1, context))
        recorder.observe_draft([1], context, truth.draft_seconds([1], context))
    for length in (2, 4, 8):
        recorder.observe_verify(length + 1, 32, truth.verify_seconds(length + 1, 32))
        recorder.observe_draft([1] * length, 32, truth.draft_seconds([1] * length, 32))
        recorder.observe_verify(length + 1, 32, 5.0)  # something else went on
        recorder.observe_draft([1] * length, 32, 5.0)
    recorder.observe_verify(72, 32, truth.verify_seconds(72, 32))
    recorder.observe_draft([8] * 8, 32, truth.draft_seconds([8] * 8, 32))
    found = CostTable(recorder.fit())
    for rows, context in ((1, 0), (5, 500), (9, 100), (72, 2000)):
        assert found.verify_seconds(rows, context) == pytest.approx(truth.verify_seconds(rows, context), rel=1e-6)
    for fed, context in (([1], 0), ([1] * 5, 700), ([8] * 3, 100)):
        assert found.draft_seconds(fed, context) == pytest.approx(truth.draft_seconds(fed, context), rel=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_what_rows_of_prompts_cost_is_learnt_from_passes_that_decide_as_well(factor: float) -> None:
    known = replace(CALIBRATED, prefill_row=((32, 0.004), (256, 0.003)), prefill_context_s=1e-6)
    table = CostTable(known)
    assert table.prefill_seconds(32, attended=1000) == pytest.approx(0.129)
    assert table.prefill_seconds(512) > 512 * 0.002
    for _ in range(80):
        added = factor * CostTable(known).prefill_seconds(32, attended=2000)
        table.observe_prefill(32, 2000, 5, 0, table.verify_seconds(5) + added)
    assert table.prefill_seconds(32, attended=2000) == pytest.approx(added, rel=0.05)
    assert table.verify_seconds(5) == pytest.approx(0.03), "what is decided on costs what it did"
    empty = CostTable()
    empty.observe_prefill(50, 0, 1, 0, 0.1)
    assert empty.prefill_seconds(50) == pytest.approx(0.1)


def test_one_long_prefill_changes_nothing() -> None:
    table = CostTable(replace(CALIBRATED, prefill_row=((32, 0.004),), prefill_context_s=1e-6))
    before = table.prefill_seconds(32, attended=100)
    table.observe_prefill(32, 100, 5, 0, 10.0)
    assert table.prefill_seconds(32, attended=100) == before


def test_calibration_finds_what_rows_of_prompts_cost() -> None:
    truth = CostTable(replace(CALIBRATED, prefill_row=((31, 0.005), (255, 0.002)), prefill_context_s=1e-6))
    recorder = CostRecorder()
    for context in (32, 1024):
        recorder.observe_verify(1, context, truth.verify_seconds(1, context))
    for entered in (31, 255):
        attended = sum(range(entered))
        seconds = truth.verify_seconds(1, entered) + truth.prefill_seconds(entered, attended)
        recorder.observe_prefill(entered, attended, 1, entered, seconds)
        recorder.observe_prefill(entered, attended, 1, entered, 7.0)  # something else went on
    found = CostTable(recorder.fit())
    for entered, attended in ((31, 0), (255, 10_000), (100, 500)):
        assert found.prefill_seconds(entered, attended) == pytest.approx(truth.prefill_seconds(entered, attended))


def test_calibration_without_a_drafter() -> None:
    recorder = CostRecorder()
    recorder.observe_verify(1, 32, 0.02)
    assert recorder.fit() == CalibratedCosts(verify=((1, 0.02),))


def test_seconds_that_jitter_are_believed_alike_to_either_side() -> None:
    source = random.Random(1)
    table = CostTable(CALIBRATED)
    for turn in range(600):
        late = 0.6 if turn % 2 else -0.6  # what is late in one round is not there in the next
        table.observe_verify(5, 0, 0.03 * (1 + late + source.uniform(-0.05, 0.05)), jitters=True)
        table.observe_draft([1, 1], 0, 0.018 * (1 - late + source.uniform(-0.05, 0.05)), jitters=True)
    assert table.verify_seconds(5) == pytest.approx(0.03, rel=0.15)
    assert table.draft_seconds([1, 1]) == pytest.approx(0.018, rel=0.15)


def test_what_a_position_costs_is_learnt() -> None:
    truth = CostTable(replace(CALIBRATED, verify_context_s=0.0, draft_context_s=0.0))
    table, source = CostTable(replace(CALIBRATED, verify_context_s=2e-6, draft_context_s=4e-6)), random.Random(1)
    for _ in range(2000):
        context = source.randrange(100, 20_000)
        table.observe_verify(5, context, truth.verify_seconds(5, context))
        table.observe_draft([1, 1], context, truth.draft_seconds([1, 1], context))
    for context in (100, 20_000):
        assert table.verify_seconds(5, context) == pytest.approx(truth.verify_seconds(5, context), rel=0.15)
        assert table.draft_seconds([1, 1], context) == pytest.approx(truth.draft_seconds([1, 1], context), rel=0.15)
