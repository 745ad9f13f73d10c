"""From blocks to figures, on blocks whose figures can be worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from benchmarks.serving.load_figures import compare, differing_texts, draw_resamples, load_points
from benchmarks.serving.load_generator import GeneratedLoad
from qspec.errors import QspecError
from tests.benchmarks.serving.streams import block, stream


def blocks_with(factor: float, *, blocks: int = 4, seed: int = 1) -> list[GeneratedLoad]:
    """Blocks of requests whose times are ``factor`` times those of factor 1, request by request."""
    source = random.Random(seed)
    made = []
    for _ in range(blocks):
        streams = []
        for _ in range(6):
            first, gap = source.uniform(0.1, 1.0), source.uniform(0.01, 0.2)
            streams.append(stream([(factor * (first + index * gap), 2) for index in range(5)]))
        made.append(block(streams))
    return made


def test_a_configuration_that_is_always_so_much_slower_is_found_so_without_spread() -> None:
    found = compare({"auto": blocks_with(1.25), "k = 4": blocks_with(1.0), "k = 0": blocks_with(2.0)}, "auto")
    for ratio in (found.throughput, found.end_to_end, found.per_token):
        assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.8, 0.8, 0.8))
    assert set(found.better.values()) == {"k = 4"}


def test_the_better_one_is_chosen_for_each_figure() -> None:
    late = [block([stream([(5.0, 2), (5.1, 2)]), stream([(5.0, 2), (5.1, 2)])])]
    slow = [block([stream([(0.1, 2), (4.0, 2)]), stream([(0.1, 2), (4.0, 2)])])]
    found = compare({"auto": slow, "late": late, "slow": slow}, "auto")
    assert found.better == {"throughput": "slow", "end_to_end": "slow", "per_token": "late"}
    assert found.per_token.median == pytest.approx(0.1 / 3.9)


def test_differences_between_requests_are_paired_away() -> None:
    """The requests differ tenfold, the configurations by a tenth: the interval has to see the tenth."""
    slower = compare({"auto": blocks_with(1.1), "k = 0": blocks_with(1.0)}, "auto").end_to_end
    assert slower.high < 0.92 and slower.low > 0.9
    unpaired = compare({"auto": blocks_with(1.1), "k = 0": blocks_with(1.0, seed=2)}, "auto").end_to_end
    assert unpaired.high - unpaired.low > 0.1


def test_blocks_that_differ_widen_the_interval_of_throughput() -> None:
    def rates(*seconds: float) -> Sequence[GeneratedLoad]:
        return [block([stream([(0.1, 1), (one, 9)])]) for one in seconds]
    found = compare({"auto": rates(1, 2, 1, 2), "k = 0": rates(2, 1, 2, 1)}, "auto").throughput
    assert found.median == pytest.approx(1.0)
    assert found.low < 0.8 and found.high > 1.2


def test_resamples_draw_requests_from_their_own_block() -> None:
    for draw in draw_resamples([2, 5], resamples=50):
        assert len(draw.blocks) == 2
        for index, requests in zip(draw.blocks, draw.requests, strict=True):
            assert len(requests) == [2, 5][index]
            assert requests.max() < [2, 5][index]


def test_the_figures_of_a_point() -> None:
    streams = [stream([(1.0, 1), (2.0, 3)], due_s=0.5), stream([(3.0, 4)], due_s=2.0)]
    point = load_points({"auto": [block(streams)]})["auto"]
    assert (point.blocks, point.requests, point.tokens) == (1, 2, 8)
    assert point.throughput.median == pytest.approx(8 / 3)
    assert point.first_token.p50 == pytest.approx(0.75)
    assert point.end_to_end.p99 == pytest.approx(1.0 + 0.99 * 0.5)
    assert point.per_token.p50 == pytest.approx(1 / 3)
    assert point.gap.p99 == pytest.approx(1.0)
    assert point.tokens_per_round == 2.0


def test_unpaired_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare({"auto": blocks_with(1.0), "k = 0": blocks_with(1.0, blocks=3)}, "auto")


def test_texts_that_depend_on_the_configuration_are_counted() -> None:
    def texts(*digests: str) -> list[GeneratedLoad]:
        return [block([stream([(1.0, 1)], digest=digest) for digest in digests])]
    assert differing_texts({"auto": texts("a", "b"), "k = 0": texts("a", "b")}) == 0
    assert differing_texts({"auto": texts("a", "b"), "k = 4": texts("a", "c"), "k = 0": texts("a", "b")}) == 1


def test_texts_that_came_in_one_message_have_no_time_per_token() -> None:
    at_once = {name: [block([stream([(1.0, 4)]), stream([(2.0, 4)])])] for name in ("auto", "k = 0")}
    with pytest.raises(QspecError, match="--max-tokens"):
        compare(at_once, "auto")
