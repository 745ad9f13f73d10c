"""When two groups that alternate would gain, and the calls that it is measured with."""

from __future__ import annotations

import json

import pytest

from benchmarks.alternating import (
    OVERLAPS,
    alternation,
    main,
    one_group_s,
    render_overlaps,
    two_groups_s,
)
from benchmarks.machines import MACHINES
from benchmarks.overlap import Calls, Overlap
from qspec.cost_table import CalibratedCosts, CostTable
from tests.fakes import FakeDrafter, FakeVerifier

BY_ROW = CalibratedCosts(verify=((1, 0.01), (1000, 10.0)), draft_step=((1, 0.01), (1000, 10.0)))
BY_PASS = CalibratedCosts(verify=((1, 0.02),), draft_step=((1, 0.02),))


def test_rounds_by_hand() -> None:
    costs = CostTable(BY_ROW)
    assert one_group_s(costs, 8, 1, 0) == pytest.approx(0.08 + 0.16)
    assert two_groups_s(costs, 8, 1, 0, overlap=0.0) == pytest.approx(0.24), "taking turns gains nothing"
    assert two_groups_s(costs, 8, 1, 0, overlap=1.0) == pytest.approx(2 * 0.08)
    assert two_groups_s(CostTable(BY_PASS), 8, 1, 0, overlap=1.0) == pytest.approx(0.04), "the same as one group"
    assert two_groups_s(CostTable(BY_PASS), 8, 3, 0, overlap=1.0) == pytest.approx(0.12), "one group needs 0.08"


def test_a_gain_needs_rows_that_cost_something_and_an_overlap() -> None:
    rows = alternation(BY_ROW, 8, acceptance=0.9, context=0, coordinator_s=0.0)
    assert rows.one_length == 0, "drafts that cost a row and are verified by a row do not pay"
    passes = alternation(BY_PASS, 8, acceptance=0.9, context=0, coordinator_s=0.0)
    assert passes.gains[-1] <= 1.0 and passes.least_overlap is None
    between = alternation(MACHINES["cpu"], 8, acceptance=0.85, context=200, coordinator_s=0.0005)
    assert between.gains[OVERLAPS.index(0.5)] < 1.0 < between.gains[OVERLAPS.index(1.0)]
    assert between.least_overlap is not None and between.least_overlap > 0.5


def test_overlap_is_the_share_of_the_shorter_call_that_is_hidden() -> None:
    measured = Overlap(
        sequences=8, draft_length=2, draft_s=0.3, verify_s=0.5, half_draft_s=0.2, half_verify_s=0.3, both_s=0.35)
    assert (measured.one_s, measured.two_s, measured.overlap) == pytest.approx((0.8, 0.7, 0.75))
    plain = Overlap(
        sequences=8, draft_length=0, draft_s=0.0, verify_s=0.25, half_draft_s=0.0, half_verify_s=0.0, both_s=0.0)
    assert plain.overlap == 0.0
    text = render_overlaps([plain, measured], 0.85)
    assert "75%" in text and f"{0.8 / 0.7:.3f}" in text and f"{8 / 0.25:.1f}" in text


def test_calls_are_those_of_a_loop() -> None:
    verifier = FakeVerifier(max_slots=4)
    drafter = FakeDrafter(verifier)
    calls = Calls(verifier, drafter)
    for _ in range(2):
        calls.begin(4, 20)
        assert calls.draft([0, 1], 3) > 0 and calls.verify([2, 3], 3) > 0 and calls.verify(range(4), 0) > 0
        assert [len(text) for text in calls.texts[:2]] == [21, 21] and min(map(len, calls.texts[2:])) >= 22
    calls.end()
    assert verifier.verify(verifier.batches[-1]).free_blocks == 64
    assert {len(batch.items) for batch in drafter.batches} == {2}


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["alternating", "--machine", "cpu", "h200-x7", "--sequences", "2", "32"])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])["machines"]
    assert {name: [one["sequences"] for one in rows] for name, rows in found.items()} == {
        "cpu": [2, 32], "h200-x7": [2, 32]}
    assert all(one["gains"][0] < 1.0 for rows in found.values() for one in rows), "half an overlap never pays"
    for wrong in (["--sequences", "3"], ["--acceptance=1"], ["--machine=nowhere"], ["--draft-lengths", "9"]):
        monkeypatch.setattr("sys.argv", ["alternating", *wrong])
        assert main() == 2
