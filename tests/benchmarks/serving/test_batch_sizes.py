"""Batch sizes: rates without prompts, ratios block by block, and what is judged."""

from __future__ import annotations

import pytest

from benchmarks.serving.batch_sizes import BatchSize, batch_size_figures, decode_rate, keys_in_order
from benchmarks.serving.batch_sizes_report import batch_size_verdicts, render_batch_sizes
from benchmarks.serving.block_log import BlockKey, BlockLog
from benchmarks.serving.load_generator import GeneratedLoad
from qspec.errors import QspecError
from tests.benchmarks.serving.streams import block, even_stream, stream


def decoding(every_s: float, *, call_s: float = 0.98, digest: str = "text") -> GeneratedLoad:
    """Two streams of eleven tokens, the second of which begins a second later."""
    times = [[(start + index * every_s, 1) for index in range(11)] for start in (0.0, 1.0)]
    return block([stream(one, call_s=call_s, digest=digest) for one in times])


def figures(blocks: int, *, auto_s: float, call_s: float = 0.98, digest: str = "text") -> tuple[BatchSize, ...]:
    """Of a size of 2."""
    log = BlockLog(None, {})
    for index in range(blocks):
        log.add(BlockKey(2.0, index, "auto"), decoding(auto_s, call_s=call_s, digest=digest))
        log.add(BlockKey(2.0, index, "k = 0"), decoding(0.2))
    log.add(BlockKey(2.0, blocks, "auto"), decoding(9.0))  # its other half is missing
    return batch_size_figures(log, [2, 64])


def test_the_rate_is_of_the_time_after_all_have_begun() -> None:
    assert decode_rate(decoding(0.2)) == pytest.approx((10 + 5) / 2)
    with pytest.raises(QspecError, match="--batch-tokens"):
        decode_rate(block([even_stream(2), stream([(5.0, 1)])]))


def test_blocks_are_paired_and_the_targets_judged() -> None:
    (found,) = figures(3, auto_s=0.1)
    assert (found.streams, found.blocks, found.differing_texts) == (2, 3, 0)
    assert found.ratio.median == pytest.approx(decode_rate(decoding(0.1)) / 7.5)
    assert found.scheduling.median == pytest.approx(0.02)
    assert found.accepted_share == 0.75
    assert [verdict.met for verdict in batch_size_verdicts([found], [2, 64], 3)] == [True, True, None, None, True]
    assert "75%" in render_batch_sizes([found])


@pytest.mark.parametrize(("auto_s", "call_s", "digest", "missed"), [
    (0.25, 0.98, "text", 0), (0.1, 0.96, "text", 1), (0.1, 0.98, "another", 2)])
def test_what_goes_wrong_is_missed(auto_s: float, call_s: float, digest: str, missed: int) -> None:
    found = figures(3, auto_s=auto_s, call_s=call_s, digest=digest)
    met = [verdict.met for verdict in batch_size_verdicts(found, [2], 3)]
    assert met == [index != missed for index in range(3)]


def test_too_few_blocks_are_not_judged() -> None:
    assert [verdict.met for verdict in batch_size_verdicts(figures(2, auto_s=0.1), [2], 3)] == [None, None, True]


def test_sizes_and_configurations_take_turns() -> None:
    order = [(key.load, key.index, key.configuration) for key, _ in keys_in_order([1, 8], 2)]
    assert order == [
        (1, 0, "auto"), (1, 0, "k = 0"), (8, 0, "k = 0"), (8, 0, "auto"),
        (1, 1, "auto"), (1, 1, "k = 0"), (8, 1, "k = 0"), (8, 1, "auto")]
