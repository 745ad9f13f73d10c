"""A verifier and a drafter over one arena on a GPU, in this process: what the engines make without RPC and turns."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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


@dataclass(slots=True)
class Pair:
    """A verifier, maybe a drafter, and a loop over them."""

    model: ConvertedModel
    config: StackConfig
    verifier: LocalVerifier
    timed_verifier: TimedVerifier
    loop: SpeculationLoop
    tokenizer: Tokenizer
    timed_drafter: TimedDrafter | None = None

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

    def sequences(
        self, count: int, tokens: int, draft_length: int | None, sampling: Sampling, first: int = 0
    ) -> list[Text]:
        """Requests with the benchmark's prompts from number ``first`` on, which end by their length alone; each has
        noise of its own."""
        prompts = benchmark_prompts()
        return [
            Text(str(index), self.tokenizer.encode_chat([{"role": "user", "content": prompts[index % len(prompts)]}]),
                 tokens, replace(sampling, choice=index), draft_length=draft_length)
            for index in range(first, first + count)
        ]

    @contextmanager
    def running(self, sequences: Sequence[Text]) -> Iterator[None]:
        """Have these decoded while it is entered: all have their first token, and none is left behind it."""
        for sequence in sequences:
            self.loop.add(sequence)
        try:
            while not all(sequence.generated for sequence in sequences):
                self.loop.step()
            yield
        finally:
            for sequence in sequences:
                self.loop.remove(sequence)
            while self.loop.has_work:
                self.loop.step()

    @contextmanager
    def drafting(self, method: str, progress: Progress) -> Iterator[DrafterDescription]:
        """Have a drafter of ``method`` while it is entered."""
        drafter = LocalDrafter(
            self.model, replace(self.config, draft_quantization=method), Backend.CUDA, progress)
        plain, loop = self.loop, _loop_over(self.timed_verifier)
        try:
            self.timed_drafter = TimedDrafter(drafter)
            description = loop.attach_drafter(self.timed_drafter)
            self.loop = loop
            yield description
        finally:
            self.timed_drafter, self.loop = None, plain
            plain.attach_verifier(self.timed_verifier)
            drafter.close()


def benchmark_prompts() -> list[str]:
    """What the benchmark asks, in order."""
    return [json.loads(line)["turns"][0] for line in PROMPTS.read_text("utf-8").splitlines()]


def named_model(name: str, widen: int, progress: Progress, device: str = "cuda") -> ConvertedModel:
    """A model, converted if need be, ``widen`` times as wide (1: as it is)."""
    model = prepare(name, progress=progress)
    return WidenedModel.of(model, widen, device) if widen > 1 else model


@contextmanager
def verifying(model: ConvertedModel, config: StackConfig, progress: Progress) -> Iterator[Pair]:
    """A verifier in this process, ready; drafters come and go (``Pair.drafting``)."""
    verifier = LocalVerifier.over(model, config, progress=progress, epoch=1)
    try:
        timed = TimedVerifier(verifier)
        yield Pair(model, config, verifier, timed, _loop_over(timed), Tokenizer.load(model.tokenizer_directory))
    finally:
        verifier.close()


@contextmanager
def pair_over(model: ConvertedModel, config: StackConfig, progress: Progress) -> Iterator[Pair]:
    """A verifier and the drafter that ``config`` names, if it names one."""
    with ExitStack() as stack:
        pair = stack.enter_context(verifying(model, config, progress))
        if config.draft_quantization != NO_DRAFTER:
            stack.enter_context(pair.drafting(config.draft_quantization, progress))
        yield pair


def _loop_over(verifier: Verifier) -> SpeculationLoop:
    loop = SpeculationLoop()
    loop.attach_verifier(verifier)
    return loop
