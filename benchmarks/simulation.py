"""One simulated run: requests arrive, the real loop serves them on simulated workers, and times are noted.

Two kinds of load. ``Poisson``: requests come on their own, at a rate, whatever the server does; latency tells. Closed
loop: so many clients, each with its next request as soon as the last is answered; throughput tells. Requests, their
lengths and how well they can be drafted depend on the seed alone, so that all policies meet the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.simulated_workers import AcceptanceModel, Machine, SimulatedPair, VirtualClock
from benchmarks.statistics import quantile
from qspec.config import StackConfig
from qspec.cost_calibration import calibrate
from qspec.interfaces import Sampling
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop

SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked of the server: exactly one of ``rate`` and ``clients``."""

    requests: int = 200
    rate: float | None = None
    """Poisson arrivals per second."""
    clients: int | None = None
    """Clients of a closed loop."""
    prompt_tokens: int = 200
    """Mean length of a prompt; lengths are spread log-normally."""
    output_tokens: int = 200
    """Mean number of tokens asked for."""
    length_spread: float = 0.5
    """Standard deviation of the logarithm of both lengths."""
    draft_length: int | None = None
    """Tokens drafted per round; None leaves it to the policy."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Of at least one number."""
        return cls(**{f"p{round(share * 100)}": quantile(seconds, share) for share in SHARES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    tokens: int
    seconds: float
    """From the first arrival to the last token."""
    throughput: float
    """Tokens per second."""
    first_token: Latency
    """From arrival to the first token."""
    gap: Latency
    """Between one round that made tokens for a request and the next, all requests together."""
    inter_token: Latency
    """Of each request: from its first token to its last, per token after the first."""
    end_to_end: Latency
    """From arrival to the last token."""
    rounds: int
    draft_rounds: int
    probes: int
    drafted: int
    accepted: int
    rounds_per_draft_length: tuple[int, ...]
    """Rounds of single sequences by the tokens drafted."""


@dataclass(slots=True)
class _Request:
    sequence: Sequence
    arrival: float = 0.0
    first: float = 0.0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)


def simulate(
    workload: Workload, machine: Machine, acceptance: AcceptanceModel, *, slots: int = 32, longest: int = 8,
    coordinator_s: float = 0.0, num_blocks: int = 1 << 16, early_stop: bool = False,
    max_prefill_s: float = StackConfig().max_prefill_s,
) -> Outcome:
    """Serve a workload.

    ``coordinator_s``: what a round takes besides its calls. ``early_stop``: whether drafts may end early; confidences
    cost nothing here. ``max_prefill_s``: as in ``StackConfig``.
    """
    if (workload.rate is None) == (workload.clients is None):
        raise ValueError("a workload has either a rate or clients")
    clock = VirtualClock()
    pair = SimulatedPair(
        machine, acceptance, slots=slots, longest=longest, seed=workload.seed, clock=clock, num_blocks=num_blocks)
    loop = SpeculationLoop(clock, early_stop=early_stop, max_prefill_s=max_prefill_s)
    loop.attach_verifier(pair.verifier)
    loop.attach_drafter(pair.drafter)
    calibrate(loop, lambda _what, _share: None)
    clock.now, pair.rounds, pair.draft_rounds = 0.0, 0, 0
    requests = list(_requests(workload, pair.description.max_model_len))
    coming, at_once = iter(requests), workload.clients or len(requests)
    upcoming = next(coming, None)
    served: dict[str, _Request] = {}
    open_requests = finished = 0
    while finished < len(requests):
        while upcoming is not None and open_requests < at_once and upcoming.arrival <= clock.now:
            if workload.clients is not None:
                upcoming.arrival = clock.now
            served[upcoming.sequence.request_id] = upcoming
            loop.add(upcoming.sequence)
            open_requests += 1
            upcoming = next(coming, None)
        if not loop.has_work:
            assert upcoming is not None
            clock.now = upcoming.arrival
            continue
        commits = loop.step()
        clock.advance(coordinator_s)
        for commit in commits:
            request = served[commit.sequence.request_id]
            if request.first:
                request.gaps.append(clock.now - request.last)
            request.last = clock.now
            request.first = request.first or clock.now
            if commit.sequence.finish is not None:
                open_requests -= 1
                finished += 1
    return _outcome(requests, pair, loop)


def _requests(workload: Workload, room: int) -> Iterator[_Request]:
    """The requests in the order of their arrival."""
    source, arrival = random.Random(workload.seed), 0.0
    for index in range(workload.requests):
        prompt = _length(source, workload.prompt_tokens, workload.length_spread, room // 2)
        output = _length(source, workload.output_tokens, workload.length_spread, room // 2)
        sequence = Sequence(str(index), [1] * prompt, output, Sampling(), draft_length=workload.draft_length)
        yield _Request(sequence, arrival=arrival)
        if workload.rate is not None:
            arrival += source.expovariate(workload.rate)


def _length(source: random.Random, mean: int, spread: float, most: int) -> int:
    """A log-normal length with this mean, from 1 to ``most``."""
    return min(max(round(mean * math.exp(source.gauss(-spread**2 / 2, spread))), 1), most)


def _outcome(requests: list[_Request], pair: SimulatedPair, loop: SpeculationLoop) -> Outcome:
    tokens = sum(len(request.sequence.generated) for request in requests)
    seconds = max(request.last for request in requests)
    stats = [request.sequence.stats for request in requests]
    longest = max(len(one.rounds_per_draft_length) for one in stats)
    several = [request for request in requests if len(request.sequence.generated) > 1]
    per_token = [(request.last - request.first) / (len(request.sequence.generated) - 1) for request in several]
    gaps = [gap for request in requests for gap in request.gaps]
    return Outcome(
        tokens=tokens, seconds=seconds, throughput=tokens / seconds,
        first_token=Latency.of([request.first - request.arrival for request in requests]),
        gap=Latency.of(gaps or [0.0]),
        inter_token=Latency.of(per_token or [0.0]),
        end_to_end=Latency.of([request.last - request.arrival for request in requests]),
        rounds=pair.rounds, draft_rounds=pair.draft_rounds, probes=loop.policy.probes,
        drafted=sum(one.drafted for one in stats), accepted=sum(one.accepted for one in stats),
        rounds_per_draft_length=tuple(
            sum(one.rounds_per_draft_length[length] for one in stats if length < len(one.rounds_per_draft_length))
            for length in range(longest)),
    )
