"""From blocks to figures: throughput, latencies, and how ``auto`` compares with the better of the others. Pure.

Intervals are percentile bootstrap intervals in two stages (Davison and Hinkley 1997, section 3.8): blocks are drawn,
then requests within each, the same ones for every configuration, since requests of one block wait for each other and
those of different blocks do not. What is a property of a whole block, its throughput, is drawn in the first stage
alone. In each draw ``auto`` is held against whichever of the others is better in that draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.load_generator import GeneratedLoad
from benchmarks.simulation import Latency
from benchmarks.statistics import BOOTSTRAP_SEED, CONFIDENCE, Interval, quantile
from qspec.errors import QspecError

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """One configuration under one load."""

    blocks: int
    requests: int
    tokens: int
    throughput: Interval
    """Tokens per second from the first arrival to the last token, over all blocks."""
    first_token: Latency
    """From the time at which a request was due to its first token."""
    per_token: Latency
    """Of each request: seconds per token after its first message."""
    gap: Latency
    """Between one message of a stream and the next; a message has a token or several."""
    end_to_end: Latency
    """From the time at which a request was due to its last token."""
    median_end_to_end: Interval
    median_first_token: Interval
    median_per_token: Interval
    tokens_per_round: float
    drafted: int
    accepted: int
    generator_share: float
    """Share of one core that the load generator took."""
    latest_s: float
    """How late the latest request was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``auto`` in units of the better of the others; above 1 it is better."""

    throughput: Interval
    end_to_end: Interval
    """Mean end-to-end latency, the others' over auto's."""
    per_token: Interval
    """The same of the mean time per token."""
    better: dict[str, str]
    """Which of the others is the better one, by figure."""


@dataclass(frozen=True, slots=True)
class _Arrays:
    """One configuration's blocks as arrays: a number per block, or an array per block."""

    rates: tuple[Floats, Floats]
    """Tokens and seconds, by block."""
    end_to_end: list[Floats]
    first_token: list[Floats]
    per_token: list[Floats]
    """NaN where all tokens came at once."""

    @classmethod
    def of(cls, blocks: Sequence[GeneratedLoad]) -> _Arrays:
        return cls(
            rates=(np.array([float(b.tokens) for b in blocks]), np.array([b.seconds for b in blocks])),
            end_to_end=[np.array([s.end_to_end_s for s in b.streams]) for b in blocks],
            first_token=[np.array([s.first_token_s for s in b.streams]) for b in blocks],
            per_token=[
                np.array([np.nan if s.per_token_s is None else s.per_token_s for s in b.streams]) for b in blocks],
        )


@dataclass(frozen=True, slots=True)
class Resample:
    """One draw: blocks, and of each the requests."""

    blocks: NDArray[np.int64]
    requests: tuple[NDArray[np.int64], ...]

    def of(self, arrays: Sequence[Floats]) -> Floats:
        """The drawn requests' numbers."""
        return np.concatenate([arrays[block][chosen] for block, chosen in zip(self.blocks, self.requests, strict=True)])


def draw_resamples(sizes: Sequence[int], *, resamples: int = RESAMPLES, seed: int = BOOTSTRAP_SEED) -> list[Resample]:
    """Draws from blocks with ``sizes`` requests."""
    source = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        blocks = source.integers(0, len(sizes), len(sizes))
        drawn.append(Resample(blocks, tuple(source.integers(0, sizes[block], sizes[block]) for block in blocks)))
    return drawn


def load_points(blocks: dict[str, Sequence[GeneratedLoad]]) -> dict[str, LoadPoint]:
    """Figures of each configuration under one load; the blocks are paired."""
    drawn = draw_resamples(_sizes(blocks))
    return {name: _point(found, drawn) for name, found in blocks.items()}


def compare(blocks: dict[str, Sequence[GeneratedLoad]], name: str) -> Comparison:
    """``name`` against the better of the others, under one load; the blocks are paired."""
    drawn = draw_resamples(_sizes(blocks))
    arrays = {configuration: _Arrays.of(found) for configuration, found in blocks.items()}
    own, others = arrays[name], {other: found for other, found in arrays.items() if other != name}
    whole = _whole(own.end_to_end)

    def interval(speed: Callable[[_Arrays, Resample], float]) -> tuple[Interval, str]:
        def ratio(draw: Resample) -> float:
            return speed(own, draw) / float(np.max([speed(other, draw) for other in others.values()]))  # NaN stays
        better = max(others, key=lambda other: speed(others[other], whole))
        return _interval(ratio(whole), [ratio(draw) for draw in drawn]), better

    throughput, fastest = interval(lambda one, draw: _throughput(one.rates, draw))
    end_to_end, soonest = interval(lambda one, draw: 1.0 / float(draw.of(one.end_to_end).mean()))
    per_token, swiftest = interval(lambda one, draw: 1.0 / float(_known(draw.of(one.per_token)).mean()))
    return Comparison(
        throughput=throughput, end_to_end=end_to_end, per_token=per_token,
        better={"throughput": fastest, "end_to_end": soonest, "per_token": swiftest})


def differing_texts(blocks: dict[str, Sequence[GeneratedLoad]]) -> int:
    """Requests whose text is not the same in every configuration."""
    return sum(
        len({stream.digest for stream in streams}) > 1
        for together in zip(*blocks.values(), strict=True)
        for streams in zip(*(block.streams for block in together), strict=True)
    )


def _sizes(blocks: dict[str, Sequence[GeneratedLoad]]) -> list[int]:
    found = {tuple(len(block.streams) for block in one) for one in blocks.values()}
    if len(found) != 1:
        raise ValueError("blocks are paired only if all configurations have served the same ones")
    return list(found.pop())


def _point(blocks: Sequence[GeneratedLoad], drawn: Sequence[Resample]) -> LoadPoint:
    arrays = _Arrays.of(blocks)
    streams = [stream for block in blocks for stream in block.streams]
    whole = _whole(arrays.end_to_end)

    def median(numbers: list[Floats]) -> Interval:
        return _interval(
            float(np.median(_known(whole.of(numbers)))), [float(np.median(_known(draw.of(numbers)))) for draw in drawn])

    return LoadPoint(
        blocks=len(blocks), requests=len(streams), tokens=sum(block.tokens for block in blocks),
        throughput=_interval(_throughput(arrays.rates, whole), [_throughput(arrays.rates, draw) for draw in drawn]),
        first_token=Latency.of([stream.first_token_s for stream in streams]),
        per_token=Latency.of([one for stream in streams if (one := stream.per_token_s) is not None] or [0.0]),
        gap=Latency.of([gap for stream in streams for gap in stream.gaps_s] or [0.0]),
        end_to_end=Latency.of([stream.end_to_end_s for stream in streams]),
        median_end_to_end=median(arrays.end_to_end), median_first_token=median(arrays.first_token),
        median_per_token=median(arrays.per_token),
        tokens_per_round=sum(stream.tokens for stream in streams) / sum(stream.rounds for stream in streams),
        drafted=sum(stream.drafted for stream in streams), accepted=sum(stream.accepted for stream in streams),
        generator_share=sum(block.cpu_s for block in blocks) / sum(block.seconds for block in blocks),
        latest_s=max(block.latest_s for block in blocks),
    )


def _throughput(rates: tuple[Floats, Floats], draw: Resample) -> float:
    tokens, seconds = rates
    return float(tokens[draw.blocks].sum() / seconds[draw.blocks].sum())


def _whole(arrays: Sequence[Floats]) -> Resample:
    """Everything once."""
    return Resample(np.arange(len(arrays)), tuple(np.arange(len(array)) for array in arrays))


def _known(numbers: Floats) -> Floats:
    """Those that are there; NaN when none is."""
    there: Floats = numbers[~np.isnan(numbers)]
    return there if len(there) else numbers[:1]


def _interval(value: float, draws: Sequence[float]) -> Interval:
    """``draws`` in which a number does not exist are left out; there is an error when it does not exist at all."""
    if math.isnan(value):
        raise QspecError("--max-tokens: every text came in one message, so there is no time per token; ask for more")
    there, tail = [draw for draw in draws if not math.isnan(draw)], (1 - CONFIDENCE) / 2
    return Interval(low=quantile(there, tail), median=value, high=quantile(there, 1 - tail))
