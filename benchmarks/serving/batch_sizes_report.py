"""Batch sizes as a table and as targets."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import NO_LOSS, Verdict
from benchmarks.serving.batch_sizes import CONFIGURATIONS, BatchSize
from benchmarks.serving.load_report import interval_text
from benchmarks.statistics import CONFIDENCE, Spread

MOST_SCHEDULING = 0.03
"""Share of a round that scheduling may take."""


def render_batch_sizes(figures: Sequence[BatchSize]) -> str:
    """A line for each size."""
    names = [configuration.name for configuration in CONFIGURATIONS]
    lines = [
        "so many streams at once, tokens/s from when all have begun to the end of the last (quartiles)",
        f"{'streams':>7} {'blocks':>6}  " + "  ".join(f"{name:>26}" for name in names)
        + f"  {f'auto / k = 0 [{CONFIDENCE:.0%}]':>22} {'tok/round':>9} {'stood':>6}  {'round, ms':>9} "
          f"{'scheduling':>22} {'RPC':>6}"]
    for one in figures:
        rates = "  ".join(f"{_rates(one.rates[name]):>26}" for name in names)
        stood = "–" if one.accepted_share is None else f"{one.accepted_share:.0%}"
        scheduling = f"{one.scheduling.median:.1%} [{one.scheduling.low:.1%}, {one.scheduling.high:.1%}]"
        lines.append(
            f"{one.streams:7} {one.blocks:6}  {rates}  {interval_text(one.ratio, 3):>22} {one.tokens_per_round:9.2f} "
            f"{stood:>6}  {1000 * one.round_s:9.1f} {scheduling:>22} {one.rpc:6.1%}")
    return "\n".join(lines)


def _rates(rates: Spread) -> str:
    return f"{rates.median:.1f} ({rates.lower_quartile:.1f}–{rates.upper_quartile:.1f})"


def batch_size_verdicts(figures: Sequence[BatchSize], sizes: Sequence[int], least_blocks: int) -> list[Verdict]:
    """The targets at each size; with fewer than ``least_blocks`` blocks a size is not judged."""
    found = {one.streams: one for one in figures if one.blocks >= least_blocks}
    verdicts = []
    for size in sizes:
        one = found.get(size)
        verdicts += [
            Verdict(
                target=f"auto at least {NO_LOSS}x no drafts, {size} at once",
                met=None if one is None else one.ratio.median >= NO_LOSS,
                measured="too few blocks" if one is None else interval_text(one.ratio, 3)),
            Verdict(
                target=f"scheduling at most {MOST_SCHEDULING:.0%} of a round, {size} at once",
                met=None if one is None else one.scheduling.median <= MOST_SCHEDULING,
                measured="too few blocks" if one is None else f"{one.scheduling.median:.1%} of "
                f"{1000 * one.round_s:.1f} ms"),
        ]
    differing, texts = sum(one.differing_texts for one in figures), sum(one.streams * one.blocks for one in figures)
    verdicts.append(Verdict(
        target="the same texts with drafts and without, at every batch size", met=not differing if texts else None,
        measured=f"{differing} of {texts} differ"))
    return verdicts
