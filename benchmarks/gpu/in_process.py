"""A verifier and a drafter over one arena on a GPU, in this process: what the engines make without RPC and turns."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.widened_model import WidenedModel
from qspec.config import StackConfig
from qspec.engine.cuda_forward import CudaForward
from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    Drafter,
    DrafterDescription,
    Progress,
    Sampling,
    Verifier,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
)
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.tokenizer import Tokenizer
from qspec.quant.methods import NO_DRAFTER, Backend
from qspec.sequence import Sequence as Text
from qspec.speculation import SpeculationLoop

PROMPTS = Path(__file__).parent.parent / "prompts.jsonl"
_ENDLESS = 700
"""Tokens of a text: more than are ever measured."""
_SETTLING = 3
"""Rounds behind the prompts that are not measured."""


@dataclass(slots=True)
class TimedDrafter:
    """A drafter that notes how long each call takes."""

    inner: Drafter
    calls: list[tuple[int, float]] = field(default_factory=list)
    """Steps, and seconds."""

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        return self.inner.attach(verifier)

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""
        self.inner.detach(epoch)

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        started = time.perf_counter()
        answer = self.inner.draft(batch)
        self.calls.append((max(item.draft_length for item in batch.items), time.perf_counter() - started))
        return answer

    def close(self) -> None:
        """See ``Drafter``."""
        self.inner.close()


@dataclass(slots=True)
class TimedVerifier:
    """A verifier that notes how long each call without prefilling takes."""

    inner: Verifier
    calls: list[tuple[int, float]] = field(default_factory=list)
    """Rows, and seconds."""

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self.inner.describe()

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        started = time.perf_counter()
        answer = self.inner.verify(batch)
        if batch.verifications and not batch.prefill_chunks:
            rows = sum(1 + len(each.draft_tokens) for each in batch.verifications)
            self.calls.append((rows, time.perf_counter() - started))
        return answer

    def close(self) -> None:
        """See ``Verifier``."""
        self.inner.close()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two engines and a loop over them."""

    verifier: LocalVerifier
    timed_verifier: TimedVerifier
    timed_drafter: TimedDrafter | None
    loop: SpeculationLoop
    tokenizer: Tokenizer

    def texts(self, sequences: Sequence[Text]) -> list[list[int]]:
        """Generate all, in one batch."""
        for sequence in sequences:
            self.loop.add(sequence)
        while self.loop.has_work:
            self.loop.step()
        return [list(sequence.generated) for sequence in sequences]

    @property
    def graphs(self) -> int:
        """CUDA graphs of both engines."""
        forwards = [self.verifier.forward]
        if self.timed_drafter is not None and isinstance(self.timed_drafter.inner, LocalDrafter):
            forwards.append(self.timed_drafter.inner.forward)
        return sum(forward.graphs for forward in forwards if isinstance(forward, CudaForward))

    def sequences(self, count: int, tokens: int, draft_length: int | None, sampling: Sampling) -> list[Text]:
        """Requests with the benchmark's prompts, which end by their length alone; each has noise of its own."""
        lines = PROMPTS.read_text("utf-8").splitlines()
        prompts = [json.loads(lines[index % len(lines)])["turns"][0] for index in range(count)]
        return [
            Text(str(index), self.tokenizer.encode_chat([{"role": "user", "content": prompt}]), tokens,
                 replace(sampling, choice=index), draft_length=draft_length)
            for index, prompt in enumerate(prompts)
        ]


@dataclass(frozen=True, slots=True)
class Decoding:
    """What one run of a batch measured."""

    tokens_per_s: float
    """Of the whole batch, from the first token of the last sequence to the end of the first."""
    verify_s: float
    """Median of a verify call."""
    draft_step_s: float | None
    """Median of a draft call, by step."""
    acceptance: float | None
    """Share of drafts that stood, over rounds that drafted as many tokens as were asked for."""
    tokens_per_round: float
    """Of a sequence."""
    outside_s: float
    """Of a round: neither draft nor verify call, median."""
    rounds: int
    """Rounds that were measured."""
    mean_draft_length: float
    """Tokens drafted for a sequence in a round."""


def decode(pair: Pair, count: int, tokens: int, draft_length: int | None, sampling: Sampling) -> Decoding:
    """Generate with ``count`` sequences at once and measure rounds in which all of them decode.

    Texts go on until ``tokens`` each were measured, however long the prompts took, and are dropped then. Rounds that
    captured a CUDA graph do not count: a server has them once. ``draft_length``: None leaves it to the controller.
    """
    sequences = pair.sequences(count, _ENDLESS, draft_length, sampling)
    for sequence in sequences:
        pair.loop.add(sequence)
    while not all(sequence.generated for sequence in sequences):
        pair.loop.step()
    for _ in range(_SETTLING):
        pair.loop.step()
    rounds: list[float] = []
    verify_calls: list[float] = []
    draft_calls: list[tuple[int, float]] = []
    made = 0
    before = [(sequence.stats.drafted, sequence.stats.accepted) for sequence in sequences]
    while made < tokens * count:
        if any(sequence.finish for sequence in sequences):
            raise RuntimeError("a text came to an end while it was measured: too few positions for it")
        for timed in (pair.timed_verifier, pair.timed_drafter):
            if timed is not None:
                timed.calls.clear()
        graphs, length = pair.graphs, sum(len(sequence.generated) for sequence in sequences)
        started = time.perf_counter()
        pair.loop.step()
        seconds = time.perf_counter() - started
        if pair.graphs == graphs:
            made += sum(len(sequence.generated) for sequence in sequences) - length
            rounds.append(seconds)
            verify_calls += [taken for _, taken in pair.timed_verifier.calls]
            draft_calls += pair.timed_drafter.calls if pair.timed_drafter is not None else []
    drafted, accepted = (
        sum(getattr(sequence.stats, name) - old[index] for sequence, old in zip(sequences, before, strict=True))
        for index, name in enumerate(("drafted", "accepted")))
    for sequence in sequences:
        pair.loop.remove(sequence)
    while pair.loop.has_work:
        pair.loop.step()
    verify_s = statistics.median(verify_calls)
    calls_s = (sum(verify_calls) + sum(taken for _, taken in draft_calls)) / len(rounds)
    return Decoding(
        tokens_per_s=made / sum(rounds), verify_s=verify_s,
        draft_step_s=statistics.median(taken / steps for steps, taken in draft_calls) if draft_calls else None,
        acceptance=accepted / drafted if drafted else None, tokens_per_round=made / len(rounds) / count,
        outside_s=sum(rounds) / len(rounds) - calls_s, rounds=len(rounds),
        mean_draft_length=drafted / len(rounds) / count)


def named_model(name: str, widen: int, progress: Progress, device: str = "cuda") -> ConvertedModel:
    """A model, converted if need be, ``widen`` times as wide (1: as it is)."""
    model = prepare(name, progress=progress)
    return WidenedModel.of(model, widen, device) if widen > 1 else model


@contextmanager
def pair_over(model: ConvertedModel, config: StackConfig, progress: Progress) -> Iterator[Pair]:
    """Both engines over one arena, ready."""
    verifier = LocalVerifier.over(model, config, progress=progress, epoch=1)
    drafter: LocalDrafter | None = None
    try:
        timed_verifier, timed_drafter, loop = TimedVerifier(verifier), None, SpeculationLoop()
        loop.attach_verifier(timed_verifier)
        if config.draft_quantization != NO_DRAFTER:
            drafter = LocalDrafter(model, config, Backend.CUDA, progress)
            timed_drafter = TimedDrafter(drafter)
            loop.attach_drafter(timed_drafter)
        yield Pair(verifier, timed_verifier, timed_drafter, loop, Tokenizer.load(model.tokenizer_directory))
    finally:
        if drafter is not None:
            drafter.close()
        verifier.close()
