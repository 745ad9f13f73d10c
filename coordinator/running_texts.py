"""The texts that one engine runs: from what a round commits to the streams that it belongs to.

Engine's thread only. A text is here from the moment the loop has its sequence until it has ended, was dropped, or goes
back to the router.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.request_times import RequestTimes
from coordinator.stream import Stream
from qspec.errors import QspecError
from qspec.sequence import Sequence
from qspec.speculation import Commit, SpeculationLoop


class RunningTexts:
    """See the module."""

    def __init__(self, loop: SpeculationLoop, metrics: EngineMetrics) -> None:
        """``loop`` runs them, ``metrics`` counts what comes of them."""
        self._loop = loop
        self._metrics = metrics
        self._streams: dict[str, Stream] = {}  # by the sequence's id

    def begin(self, streams: Iterable[Stream]) -> None:
        """Run these from the next round on."""
        for stream in streams:
            stream.generation.times.begin()
            sequence = stream.generation.sequence
            self._streams[sequence.request_id] = stream
            self._loop.add(sequence)

    def deliver(self, commits: Iterable[Commit]) -> tuple[list[Stream], dict[str, int]]:
        """Put what a round committed into the streams; those that have something new, and tokens made by client."""
        changed: list[Stream] = []
        made: dict[str, int] = {}
        for commit in commits:
            stream = self._streams.get(commit.sequence.request_id)
            if stream is None:
                continue  # dropped since
            changed.append(stream)
            made[stream.client] = made.get(stream.client, 0) + len(commit.token_ids)
            piece = stream.generation.take(commit.token_ids, commit.logprobs)
            self._count(commit.sequence, stream.generation.times, len(piece.token_ids))
            kept = stream.put(piece)
            if piece.ending is not None or not kept:
                del self._streams[commit.sequence.request_id]
                if commit.sequence.finish is None:  # a stop string, or a slow reader: the loop knows neither
                    self._loop.remove(commit.sequence)
        return changed, made

    def drop(self, stream: Stream) -> None:
        """Forget a stream; one that has not ended is taken out of the loop."""
        sequence = stream.generation.sequence
        if self._streams.pop(sequence.request_id, None) is not None:
            self._loop.remove(sequence)

    def evict(self) -> list[Stream]:
        """Take all of them out of the loop, in the order in which they came: they go on elsewhere."""
        ids = [sequence.request_id for sequence in self._loop.evict_all()]
        return [stream for name in ids if (stream := self._streams.pop(name, None)) is not None]

    def fail(self, error: QspecError) -> list[Stream]:
        """End all of them with ``error``, whatever state the loop is in."""
        failed = list(self._streams.values())
        self._streams.clear()
        for stream in failed:
            stream.fail(error)
        return failed

    def _count(self, sequence: Sequence, times: RequestTimes, tokens: int) -> None:
        """Count what a round gave to one text."""
        self._metrics.tokens_came(times, tokens, sequence.prompt_len)
        looked = self._loop.description.prefix_cache and sequence.sampling.prompt_logprobs is None
        if times.gap_s is None and looked:
            self._metrics.prefix_looked_up(sequence.prompt_len, sequence.cached_prompt_tokens or 0)
