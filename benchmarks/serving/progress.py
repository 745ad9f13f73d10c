"""Whether streams that run together get on together.

*Progress* of a stream at a time t: the tokens that came to it after all streams had begun (the latest first token) and
until t. It is compared at times at which all streams run: after the latest first token, before the earliest end. *Most
over median* is the largest progress over the median one, *least over median* the smallest: 1 is perfectly even, a
starving stream's share goes to 0. Both are told at their worst over the sample times, from the first at which the
median is ``LEAST_MEDIAN`` tokens, since one token more or less says nothing before. Who had to wait to begin is told
apart, by the wait.

Where there are more streams than slots they never all run at once. Then progress is compared in windows of time, each
among the streams that ran all through it, as long as a stream needs for ``WINDOW_TOKENS`` tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.stream_record import StreamRecord

WINDOW_TOKENS = 16
_LEAST_TOGETHER = 3
"""Streams that have to run through a window for their progress to be compared."""
LEAST_MEDIAN = 8
"""Tokens of median progress from which on shares are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evenness:
    """How even progress was."""

    samples: int
    """Times at which it was looked at."""
    together_s: float
    """Seconds in which all streams ran; 0: they never did."""
    window_s: float
    """Length of the windows in which progress was compared; 0: all streams ran together, and it was from the start."""
    most_over_median: float | None
    """At its worst; None without samples."""
    least_over_median: float | None
    longest_silence_s: float
    """Longest time without a message, after a stream's first and before its last; all streams, all the time."""
    median_silence_s: float
    """Median over the streams of each one's longest such time."""


def evenness(streams: Sequence[StreamRecord], every_s: float = 0.5) -> Evenness:
    """Look at the progress of at least one stream ``every_s`` seconds."""
    begun, ended = max(stream.first_s for stream in streams), min(stream.last_s for stream in streams)
    window_s = 0.0
    if ended > begun:
        times = [begun + step * every_s for step in range(1, 1 + int((ended - begun) / every_s))]
        found = [[tokens_between(stream, begun, time) for stream in streams] for time in times]
    else:
        window_s = _window_s(streams)
        found = _in_windows(streams, window_s, every_s)
    judged = [(progress, median) for progress in found if (median := statistics.median(progress)) >= LEAST_MEDIAN]
    most, least = [max(one) / median for one, median in judged], [min(one) / median for one, median in judged]
    silences = [max(stream.gaps_s, default=0.0) for stream in streams]
    return Evenness(
        samples=len(judged), together_s=max(ended - begun, 0.0), window_s=window_s,
        most_over_median=max(most, default=None), least_over_median=min(least, default=None),
        longest_silence_s=max(silences), median_silence_s=statistics.median(silences),
    )


def _window_s(streams: Sequence[StreamRecord]) -> float:
    """Seconds in which a stream makes ``WINDOW_TOKENS`` tokens; 0 where every text came at once."""
    return WINDOW_TOKENS * statistics.median(stream.per_token_s or 0.0 for stream in streams)


def _in_windows(streams: Sequence[StreamRecord], window_s: float, every_s: float) -> list[list[int]]:
    """Tokens of the streams that ran all through each of the windows, where there are enough of them."""
    found = []
    start = min(stream.first_s for stream in streams)
    while window_s and start + window_s <= max(stream.last_s for stream in streams):
        running = [one for one in streams if one.first_s <= start and one.last_s >= start + window_s]
        if len(running) >= _LEAST_TOGETHER:
            found.append([tokens_between(one, start, start + window_s) for one in running])
        start += every_s
    return found


def tokens_between(stream: StreamRecord, after_s: float, until_s: float) -> int:
    """Tokens that came after one time and until another."""
    return sum(tokens for when, tokens in stream.deliveries if after_s < when <= until_s)
