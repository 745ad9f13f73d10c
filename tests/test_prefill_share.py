"""Prompts always get on, nobody waits for them longer than the bound, and no more than that is held back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.cost_table import CalibratedCosts, CostTable
from qspec.prefill_share import LEAST_ROWS, prefill_rows

ROW_COSTS = st.lists(
    st.tuples(st.integers(1, 600), st.floats(1e-6, 0.1)), min_size=1, max_size=5, unique_by=lambda point: point[0])
PROMPTS = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700)), min_size=1, max_size=6)


def table(points: list[tuple[int, float]], context_s: float = 0.0) -> CostTable:
    """One that knows what rows of prompts cost."""
    return CostTable(CalibratedCosts(prefill_row=tuple(sorted(points)), prefill_context_s=context_s))


def added_seconds(costs: CostTable, missing: list[tuple[int, int]], rows: int) -> float:
    """What the first ``rows`` of these prompts cost, counted one by one."""
    positions = [cached + index for cached, tokens in missing for index in range(tokens)]
    return costs.prefill_seconds(rows, sum(positions[:rows]))


@given(points=ROW_COSTS, context_s=st.sampled_from([0.0, 1e-8, 1e-5]), missing=PROMPTS, room=st.integers(0, 520),
       most_s=st.sampled_from([0.0, 0.02, 0.1, 1.0]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_bound_is_kept_and_prompts_get_on(
    points: list[tuple[int, float]], context_s: float, missing: list[tuple[int, int]], room: int, most_s: float
) -> None:
    costs = table(points, context_s)
    rows = prefill_rows(missing, room, costs, most_s)
    wanted = min(room, sum(tokens for _, tokens in missing))
    assert min(wanted, LEAST_ROWS) <= rows <= wanted, "every prompt gets on, and none gets what it lacks room for"
    assert rows <= LEAST_ROWS or added_seconds(costs, missing, rows) <= most_s * (1 + 1e-9)
    if rows < wanted:
        assert added_seconds(costs, missing, rows + 1) > most_s * (1 - 1e-9), "nothing is held back without need"


@given(missing=PROMPTS, room=st.integers(0, 520))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_where_no_text_goes_on_all_the_room_is_used(missing: list[tuple[int, int]], room: int) -> None:
    assert prefill_rows(missing, room, table([(1, 0.1)]), math.inf) == min(room, sum(tokens for _, tokens in missing))


def test_what_is_not_known_is_feared() -> None:
    assert prefill_rows([(0, 500)], 512, CostTable(), 0.1) == LEAST_ROWS
    assert prefill_rows([(0, 500)], 512, CostTable(), math.inf) == 500
    assert prefill_rows([], 512, CostTable(), 0.1) == 0


@pytest.mark.parametrize(("cached", "rows"), [(0, 99), (1000, 66), (10_000, LEAST_ROWS)])
def test_rows_far_behind_in_a_prompt_are_dearer(cached: int, rows: int) -> None:
    assert prefill_rows([(cached, 500)], 512, table([(1, 0.001)], context_s=5e-7), 0.1) == pytest.approx(rows, abs=2)
