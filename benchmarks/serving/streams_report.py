"""Many streams at once as a table and as targets."""

from __future__ import annotations

from benchmarks.report import Verdict
from benchmarks.serving.many_streams import ManyStreams
from benchmarks.serving.progress import LEAST_MEDIAN, Evenness

MOST_OVER_MEDIAN = 2.0
LEAST_OVER_MEDIAN = 0.5
MOST_GROWTH = 0.05
"""By which memory may grow from the first wave to the last."""
_MIB = 2**20


def render_streams(found: ManyStreams) -> str:
    """A line for each wave, round figures, and the memory of each process."""
    lines = [f"{found.streams} streams at once over {found.slots} slots, {found.tokens_each} tokens each"]
    for index, wave in enumerate(found.waves, 1):
        even = wave.evenness
        lines.append(
            f"  wave {index}: {wave.finished} finished, {wave.throughput:.1f} tokens/s; first token p50 / p99 "
            f"{wave.first_token.p50:.1f} / {wave.first_token.p99:.1f} s; between messages p50 / p99 "
            f"{1000 * wave.gap.p50:.0f} / {1000 * wave.gap.p99:.0f} ms; {_where(even)}, "
            f"progress over the median's: most {_share(even.most_over_median)}, least {_share(even.least_over_median)} "
            f"({even.samples} samples); longest silence of a stream {even.longest_silence_s:.2f} s, median "
            f"{even.median_silence_s:.2f} s")
    lines.append(f"  memory in MiB: {'PSS before':>21} {'peak':>7} {'after each wave':>18}   RSS before, peak, after")
    for one in found.memory:
        after = " ".join(f"{size / _MIB:.1f}" for size in one.proportional_after)
        lines.append(
            f"    {one.program:20} {one.proportional_before / _MIB:11.1f} {one.proportional_peak / _MIB:7.1f} "
            f"{after:>18}   {one.resident_before / _MIB:.1f}, {one.resident_peak / _MIB:.1f}, "
            f"{one.resident_after[-1] / _MIB:.1f}")
    lines.append("  share of a round that is the coordinator's own, between the workers' answers and the next calls:")
    for streams, shares in found.shares:
        lines.append(
            f"    {streams:4} streams: {shares.scheduling:.1%} of {1000 * shares.round_s:.1f} ms, and {shares.rpc:.1%} "
            f"RPC ({shares.rounds} rounds)")
    return "\n".join(lines)


def stream_verdicts(found: ManyStreams) -> list[Verdict]:
    """All finish, none starves, memory is bounded."""
    finished = min(wave.finished for wave in found.waves)
    most = [one for wave in found.waves if (one := wave.evenness.most_over_median) is not None]
    least = [one for wave in found.waves if (one := wave.evenness.least_over_median) is not None]
    first = sum(one.proportional_after[0] for one in found.memory)
    last = sum(one.proportional_after[-1] for one in found.memory)
    even = None
    if most and least:
        even = max(most) <= MOST_OVER_MEDIAN and min(least) >= LEAST_OVER_MEDIAN
    which = f"{found.streams} streams over {found.slots} slots"
    return [
        Verdict(target=f"{which} all finish", met=finished == found.streams,
                measured=f"{finished} of {found.streams}"),
        Verdict(
            target=f"{which}, none starves: progress from {LEAST_OVER_MEDIAN} to {MOST_OVER_MEDIAN} times the median",
            met=even,
            measured=f"they never ran together long enough for {LEAST_MEDIAN} tokens" if even is None
            else f"{min(least):.2f} to {max(most):.2f}"),
        Verdict(
            target=f"{which}, memory after the last wave at most {MOST_GROWTH:.0%} above that after the first",
            met=None if len(found.waves) < 2 else last <= (1 + MOST_GROWTH) * first,
            measured=f"PSS {first / _MIB:.1f} MiB, then {last / _MIB:.1f}"),
    ]


def _where(even: Evenness) -> str:
    """Of what time the evenness is."""
    return f"in windows of {even.window_s:.1f} s" if even.window_s else f"all together for {even.together_s:.1f} s"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
