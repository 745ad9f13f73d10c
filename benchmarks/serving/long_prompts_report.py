"""Long prompts beside running texts as a table and as targets."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import Verdict
from benchmarks.serving.long_prompts import LongPrompt

MOST_BOUNDS = 2.0
"""A running text may stand still for so many bounds more than before the prompt came."""


def bounded_name(max_prefill_s: float) -> str:
    """What the configuration with the bound is called."""
    return f"at most {1000 * max_prefill_s:g} ms"


UNBOUNDED = "no bound"


def render_long_prompts(figures: Sequence[LongPrompt], tokens: int) -> str:
    """A line for each number of running texts and configuration."""
    lines = [
        f"a prompt of {tokens} tokens beside running texts: longest time that one of them stood still, ms",
        f"{'running':>9}  {'prompts add':14} {'blocks':>6} {'before':>8} {'during':>8} {'longest':>8}  "
        f"{'first token of the prompt, s':>28}"]
    for one in figures:
        lines.append(
            f"{one.streams:9}  {one.configuration:14} {one.blocks:6} {1000 * one.before_s:8.0f} "
            f"{1000 * one.during_s:8.0f} {1000 * one.longest_s:8.0f}  {one.first_token_s:28.2f}")
    return "\n".join(lines)


def long_prompt_verdicts(figures: Sequence[LongPrompt], max_prefill_s: float) -> list[Verdict]:
    """Whoever reads along waits little longer than before."""
    bounded = [one for one in figures if one.configuration != UNBOUNDED]
    return [
        Verdict(
            target=f"a long prompt beside {one.streams} running: they stand still at most "
                   f"{1000 * MOST_BOUNDS * max_prefill_s:g} ms longer than before",
            met=one.during_s <= one.before_s + MOST_BOUNDS * max_prefill_s,
            measured=f"{1000 * one.during_s:.0f} ms, before {1000 * one.before_s:.0f} ms")
        for one in bounded
    ]
