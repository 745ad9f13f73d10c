"""What running texts noticed of a long prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving.block_log import BlockKey, BlockLog
from benchmarks.serving.load_generator import GeneratedLoad
from benchmarks.serving.long_prompts import Beside, keys_in_order, long_prompt_figures, longest_gap
from benchmarks.serving.long_prompts_report import UNBOUNDED, bounded_name, long_prompt_verdicts, render_long_prompts
from qspec.errors import QspecError
from tests.benchmarks.serving.streams import block, even_stream, stream

BOUNDED = bounded_name(0.1)


def beside(gap_s: float, first_s: float) -> GeneratedLoad:
    """Two texts with a token every tenth of a second, one of which stands still from 3.0 on; a prompt comes at 3.0."""
    running = [(0.1 * index, 1) for index in range(31)]
    still = stream([*running, *((3.0 + gap_s + 0.1 * index, 1) for index in range(60))])
    return block([even_stream(100, every=0.1), still, stream([(3.0 + first_s, 1)], due_s=3.0)])


def test_the_longest_silence_counts_and_only_while_the_prompt_is_entered() -> None:
    found = Beside.of(beside(0.7, first_s=2.0))
    assert (found.before_s, found.during_s, found.first_token_s) == pytest.approx((0.1, 0.7, 2.0))
    assert longest_gap(even_stream(50), 3.5, 3.9) == pytest.approx(0.4), "nothing came between the two times"
    assert longest_gap(even_stream(50), 5.0, 4.0) == 0.0


def test_texts_that_end_too_early_say_nothing() -> None:
    with pytest.raises(QspecError, match="--beside-tokens"):
        Beside.of(block([even_stream(3), stream([(5.0, 1)], due_s=2.5)]))


def test_figures_are_medians_of_blocks_and_the_bound_is_judged() -> None:
    log = BlockLog(None, {})
    for index, gap in enumerate((0.25, 0.28, 0.9)):
        log.add(BlockKey(2.0, index, BOUNDED), beside(gap, first_s=2.0))
        log.add(BlockKey(2.0, index, UNBOUNDED), beside(1.4, first_s=1.5))
    bounded, unbounded = long_prompt_figures(log, [2, 4], [BOUNDED, UNBOUNDED])
    assert (bounded.streams, bounded.blocks) == (2, 3)
    assert (bounded.during_s, bounded.longest_s, unbounded.during_s) == pytest.approx((0.28, 0.9, 1.4))
    assert [verdict.met for verdict in long_prompt_verdicts([bounded, unbounded], 0.1)] == [True]
    assert [verdict.met for verdict in long_prompt_verdicts([bounded], 0.05)] == [False]
    assert "1400" in render_long_prompts([bounded, unbounded], 1024)


def test_configurations_take_turns() -> None:
    keys = [(key.load, key.index, key.configuration) for key in keys_in_order([1, 4], ["a", "b"], 2)]
    assert keys == [
        (1, 0, "a"), (1, 0, "b"), (4, 0, "b"), (4, 0, "a"), (1, 1, "a"), (1, 1, "b"), (4, 1, "b"), (4, 1, "a")]


def test_a_log_of_blocks_goes_to_disk_and_back(tmp_path: Path) -> None:
    log = BlockLog(tmp_path / "log", {})
    log.add(BlockKey(2.0, 0, BOUNDED), beside(0.25, first_s=2.0))
    again = BlockLog(tmp_path / "log", {})
    assert long_prompt_figures(again, [2], [BOUNDED]) == long_prompt_figures(log, [2], [BOUNDED])
