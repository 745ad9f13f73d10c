"""Whether streams that run together get on together.

*Progress* of a stream at a time t: the tokens that came to it after all streams had begun (the latest first token) and
until t. It is compared at times at which all streams run: after the latest first token, before the earliest end. *Most
over median* is the largest progress over the median one, *least over median* the smallest: 1 is perfectly even, a
starving stream's share goes to 0. Both are told at their worst over the sample times, from the first at which the
median is ``LEAST_MEDIAN`` tokens, since one token more or less says nothing before. Who had to wait to begin is told
apart, by the wait.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.serving.stream_record import StreamRecord

LEAST_MEDIAN = 8
"""Tokens of median progress from which on shares are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evenness:
    """How even progress was."""

    samples: int
    """Times at which it was looked at."""
    together_s: float
    """Seconds in which all streams ran; 0: they never did."""
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
    most, least = [], []
    for step in range(1, 1 + max(int((ended - begun) / every_s), 0)):
        progress = [tokens_between(stream, begun, begun + step * every_s) for stream in streams]
        median = statistics.median(progress)
        if median >= LEAST_MEDIAN:
            most.append(max(progress) / median)
            least.append(min(progress) / median)
    silences = [max(stream.gaps_s, default=0.0) for stream in streams]
    return Evenness(
        samples=len(most), together_s=max(ended - begun, 0.0),
        most_over_median=max(most, default=None), least_over_median=min(least, default=None),
        longest_silence_s=max(silences), median_silence_s=statistics.median(silences),
    )


def tokens_between(stream: StreamRecord, after_s: float, until_s: float) -> int:
    """Tokens that came after one time and until another."""
    return sum(tokens for when, tokens in stream.deliveries if after_s < when <= until_s)
