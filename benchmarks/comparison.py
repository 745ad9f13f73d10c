"""Decodes the same prompts in several ways, in process and on equal terms.

Every way is loaded before its clock runs, decodes every prompt once as warm-up, and then all of them ``repeats`` times;
one call decodes one prompt, and only calls are timed. Tokens are counted as tokens. Greedy texts of one verifier have
to be equal whatever drafts, which is checked in every run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from benchmarks.statistics import Spread, spread
from qspec.api.engines import Engines
from qspec.api.generation import GeneratedBatch, generate
from qspec.api.method_choice import can_draft, can_verify
from qspec.api.qspec_model import QSPECModel
from qspec.api.quantized_model import QuantizedModel
from qspec.api.script_options import ModelChoice
from qspec.api.text_request import TextRequest
from qspec.errors import InvalidInput
from qspec.interfaces import Drafter
from qspec.quant.methods import METHODS, Backend

UNQUANTISED = "none"


class Kind(Enum):
    """How a text is decoded."""

    AUTOREGRESSIVE = "autoregressive"
    SPECULATIVE = "speculative"
    QSPEC = "QSPEC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to decode; ``draft_method`` is None for plain decoding."""

    kind: Kind
    models: ModelChoice
    draft_method: str | None
    verify_method: str

    @property
    def name(self) -> str:
        """For tables."""
        if self.draft_method is None:
            return f"{self.kind.value} {self.verify_method}"
        return f"{self.kind.value} {self.draft_method} -> {self.verify_method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one way did. Times in seconds."""

    way: Way
    load_s: float
    seconds: tuple[float, ...]
    """One per timed call, prefill included."""
    tokens: tuple[int, ...]
    """New tokens of each of these calls."""
    rounds: int
    drafted: int
    accepted: int
    texts: tuple[tuple[int, ...], ...]
    """The new tokens of each prompt (first repeat)."""

    @property
    def rates(self) -> Spread:
        """Tokens per second of the calls: median and quartiles."""
        return spread([tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)])


@dataclass(frozen=True, slots=True)
class Comparison:
    """All measurements, and the ways that this machine does not have, with the reason."""

    measurements: list[Measurement] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def differing(self, baseline: Measurement) -> list[str]:
        """Ways whose texts are not those of ``baseline``, among those with its verifier."""
        return [
            other.way.name for other in self.measurements
            if other.way.verify_method == baseline.way.verify_method and other.texts != baseline.texts
        ]


def ways(models: ModelChoice, draft_method: str, verify_method: str, *, every_method: bool) -> list[Way]:
    """What is compared: plain decoding and the pair; with ``every_method`` all methods and unquantised drafts, too."""
    def way(kind: Kind, draft: str | None, verify: str) -> Way:
        return Way(kind=kind, models=models, draft_method=draft, verify_method=verify)

    verifying, drafting = [verify_method], [draft_method]
    if every_method:
        verifying += [name for name in METHODS if name != verify_method and can_verify(name, Backend.CPU)]
        drafting += [
            name for name in METHODS if name not in (draft_method, UNQUANTISED) and can_draft(name, Backend.CPU)]
    found = [way(Kind.AUTOREGRESSIVE, None, name) for name in verifying]
    if every_method or draft_method == UNQUANTISED:
        found.append(way(Kind.SPECULATIVE, UNQUANTISED, verify_method))
    return found + [way(Kind.QSPEC, name, verify_method) for name in drafting if name != UNQUANTISED]


def compare(
    compared: Sequence[Way], encode: Callable[[QuantizedModel], list[list[int]]], request: TextRequest, *,
    repeats: int, tell: Callable[[str], None],
) -> Comparison:
    """Measure one way after the other; ``encode`` makes the prompts of a loaded model."""
    result = Comparison()
    for way in compared:
        tell(f"{way.name}: loading")
        try:
            started = time.perf_counter()
            with loaded(way, request.gamma) as (verify, drafter):
                load_s = time.perf_counter() - started
                prompts = [torch.tensor([prompt]) for prompt in encode(verify)]
                tell(f"{way.name}: {repeats} x {len(prompts)} prompts")
                result.measurements.append(_measure(way, verify.engines, drafter, prompts, request, repeats, load_s))
        except InvalidInput as error:
            if not result.measurements:  # the baseline: nothing can be compared without it
                raise
            result.refused[way.name] = str(error)
    return result


@contextlib.contextmanager
def loaded(way: Way, gamma: int) -> Iterator[tuple[QuantizedModel, Drafter | None]]:
    """The verifying model and the drafter of one way, while they are needed."""
    with contextlib.ExitStack() as stack:
        if way.draft_method is None:
            yield stack.enter_context(QuantizedModel(way.models.verify, way.verify_method)), None
        elif way.models.same:
            most = max(gamma, 1)
            model = stack.enter_context(
                QSPECModel(way.models.verify, way.draft_method, way.verify_method, max_draft_length=most))
            yield model.verify, model.draft.engines.drafter
        else:
            verify = stack.enter_context(
                QuantizedModel(way.models.verify, way.verify_method, max_draft_length=max(gamma, 1)))
            draft = stack.enter_context(QuantizedModel(way.models.draft, way.draft_method))
            yield verify, draft.drafter_for(verify.engines)


def _measure(
    way: Way, engines: Engines, drafter: Drafter | None, prompts: Sequence[torch.Tensor], request: TextRequest,
    repeats: int, load_s: float,
) -> Measurement:
    def decode(prompt: torch.Tensor) -> GeneratedBatch:
        return generate(engines, drafter, prompt, request)

    for prompt in prompts:
        decode(prompt)
    seconds: list[float] = []
    batches: list[GeneratedBatch] = []
    for _ in range(repeats):
        for prompt in prompts:
            started = time.perf_counter()
            batches.append(decode(prompt))
            seconds.append(time.perf_counter() - started)
    rounds = [done for batch in batches for done in batch.texts[0].rounds]
    return Measurement(
        way=way,
        load_s=load_s,
        seconds=tuple(seconds),
        tokens=tuple(len(batch.texts[0].token_ids) for batch in batches),
        rounds=len(rounds),
        drafted=sum(done.drafted for done in rounds),
        accepted=sum(done.accepted for done in rounds),
        texts=tuple(batch.texts[0].token_ids for batch in batches[: len(prompts)]),
    )
