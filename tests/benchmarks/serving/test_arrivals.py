"""The arrival process: Poisson, paired between configurations and loads, over all prompts."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from benchmarks.serving.arrivals import poisson_arrivals


def test_gaps_are_exponential_with_the_rate() -> None:
    times = [one.at_s for one in poisson_arrivals(rate=4.0, count=20_001, prompts=5, seed=1, block=0)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.03)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.01)
    later = [(one - 0.25) * (other - 0.25) for one, other in itertools.pairwise(gaps)]
    assert statistics.mean(later) == pytest.approx(0.0, abs=0.002)


def test_a_higher_load_is_the_same_requests_closer_together() -> None:
    slow = poisson_arrivals(rate=1.0, count=50, prompts=7, seed=1, block=3)
    fast = poisson_arrivals(rate=2.0, count=50, prompts=7, seed=1, block=3)
    assert [one.prompt for one in slow] == [one.prompt for one in fast]
    assert [one.at_s for one in slow] == pytest.approx([2 * one.at_s for one in fast])


def test_blocks_and_seeds_differ_and_nothing_else_does() -> None:
    def arrivals(seed: int, block: int) -> object:
        return poisson_arrivals(rate=1.0, count=20, prompts=20, seed=seed, block=block)
    assert arrivals(1, 0) == arrivals(1, 0)
    assert len({arrivals(1, 0), arrivals(1, 1), arrivals(2, 0)}) == 3


def test_blocks_differ_in_their_prompts_and_in_their_gaps() -> None:
    one, other = (poisson_arrivals(rate=1.0, count=20, prompts=20, seed=1, block=block) for block in (0, 1))
    assert [arrival.prompt for arrival in one] != [arrival.prompt for arrival in other]
    assert one[-1].at_s != other[-1].at_s


def test_every_prompt_comes_before_any_comes_again() -> None:
    prompts = [one.prompt for one in poisson_arrivals(rate=1.0, count=12, prompts=5, seed=1, block=0)]
    assert sorted(prompts[:5]) == sorted(prompts[5:10]) == list(range(5))


def test_all_come_at_once_at_an_infinite_rate() -> None:
    assert {one.at_s for one in poisson_arrivals(rate=math.inf, count=9, prompts=2, seed=1, block=0)} == {0.0}


@pytest.mark.parametrize(("rate", "count", "prompts"), [(0.0, 1, 1), (math.nan, 1, 1), (1.0, 0, 1), (1.0, 1, 0)])
def test_what_is_no_process_is_refused(rate: float, count: int, prompts: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(rate=rate, count=count, prompts=prompts, seed=1, block=0)
