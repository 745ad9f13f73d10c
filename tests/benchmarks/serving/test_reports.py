"""What the reports call met."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.serving.block_log import ResultLog
from benchmarks.serving.feeding import Feeding
from benchmarks.serving.feeding_report import feeding_verdicts
from benchmarks.serving.load_figures import Comparison
from benchmarks.serving.load_report import load_verdicts
from benchmarks.serving.many_streams import ManyStreams, ProcessGrowth, Wave
from benchmarks.serving.progress import Evenness
from benchmarks.serving.scheduling import RoundShares
from benchmarks.serving.streams_report import render_streams, stream_verdicts
from benchmarks.simulation import Latency
from benchmarks.statistics import Interval
from qspec.errors import InvalidInput

LATENCY = Latency(p50=1.0, p95=2.0, p99=3.0)
EVEN = Evenness(
    samples=3, together_s=2.0, window_s=0.0, most_over_median=1.2, least_over_median=0.9, longest_silence_s=0.5,
    median_silence_s=0.4)
WAVE = Wave(finished=4, tokens=40, seconds=2.0, throughput=20.0, first_token=LATENCY, gap=LATENCY, evenness=EVEN)


def growth(*after: int) -> ProcessGrowth:
    return ProcessGrowth(
        program="verifier", proportional_before=90, proportional_peak=120, proportional_after=after, resident_before=90,
        resident_peak=120, resident_after=after)


def streams(*waves: Wave, memory: tuple[int, ...] = (100, 100)) -> ManyStreams:
    return ManyStreams(streams=4, slots=4, tokens_each=10, waves=waves, memory=(growth(*memory),), shares=())


def met(found: ManyStreams) -> list[bool | None]:
    return [verdict.met for verdict in stream_verdicts(found)]


def test_streams_that_end_evenly_in_bounded_memory_are_well() -> None:
    found = streams(WAVE, WAVE)
    assert met(found) == [True, True, True]
    assert "all together for 2.0 s, progress over the median's: most 1.20, least 0.90" in render_streams(found)
    waiting = replace(WAVE, evenness=replace(EVEN, together_s=0.0, window_s=1.5))
    assert "in windows of 1.5 s, progress" in render_streams(streams(waiting))


@pytest.mark.parametrize(
    ("found", "index"),
    [(streams(WAVE, replace(WAVE, finished=3)), 0),
     (streams(WAVE, replace(WAVE, evenness=replace(EVEN, least_over_median=0.4))), 1),
     (streams(WAVE, replace(WAVE, evenness=replace(EVEN, most_over_median=2.1))), 1),
     (streams(WAVE, WAVE, memory=(100, 106)), 2)],
)
def test_what_goes_wrong_in_one_wave_is_missed(found: ManyStreams, index: int) -> None:
    assert [state for state in met(found) if state is False] == [False]
    assert met(found)[index] is False


def test_what_whole_measurements_found_is_kept(tmp_path: Path) -> None:
    shares = RoundShares(rounds=3, round_s=0.1, scheduling=0.02, rpc=0.05)
    found = replace(streams(WAVE, WAVE), shares=((1, shares), (4, shares)))
    ResultLog(tmp_path / "log", {"seed": 1}).add("16", asdict(found))
    again = ResultLog(tmp_path / "log", {"seed": 1})
    assert {name: ManyStreams.from_json(record) for name, record in again.results.items()} == {"16": found}
    with pytest.raises(InvalidInput, match="seed"):
        ResultLog(tmp_path / "log", {"seed": 2})


def test_what_was_not_seen_is_not_judged() -> None:
    never = replace(WAVE, evenness=replace(EVEN, samples=0, most_over_median=None, least_over_median=None))
    assert met(streams(never, memory=(100,))) == [True, None, None]


def test_auto_has_to_reach_its_share_at_every_load() -> None:
    def comparison(throughput: float, end_to_end: float) -> Comparison:
        def around(value: float) -> Interval:
            return Interval(low=value - 0.1, median=value, high=value + 0.1)
        return Comparison(
            throughput=around(throughput), end_to_end=around(end_to_end), per_token=around(0.1), better={})
    found = load_verdicts({0.5: comparison(0.97, 1.2), 1.0: comparison(1.0, 0.96)}, differing=0, requests=9)
    assert [verdict.met for verdict in found] == [True, True, True, False, True]
    assert load_verdicts({}, differing=1, requests=9)[-1].met is False


@pytest.mark.parametrize(("most", "reached", "expected"), [(64, False, True), (45, True, False), (45, False, None)])
def test_a_search_that_ended_early_says_nothing(most: int, reached: bool, expected: bool | None) -> None:
    feeding = Feeding(costs=(), pass_s=0.02, gap_bound_s=0.05, fed=(), most_streams=most, bound_reached=reached)
    assert [verdict.met for verdict in feeding_verdicts(feeding)] == [expected]
