"""Texts for a batch of prompts, with what speculation did for each: the functions of the API around the one loop."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from torch import Tensor

from qspec.api.engines import Engines
from qspec.api.prompt_batch import read_prompts, right_padded
from qspec.api.text_request import TextRequest
from qspec.errors import InvalidInput
from qspec.interfaces import Drafter
from qspec.sequence import FinishReason, Sequence


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one sequence."""

    token_ids: tuple[int, ...]
    """What it committed: the accepted drafts, then the recovered or bonus token, unless the text ended before."""
    drafted: int
    accepted: int
    """Drafts that stood, including such as came after the end of the text."""


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One row's text."""

    prompt: tuple[int, ...]
    rounds: tuple[Round, ...]
    finish: FinishReason

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The new tokens, an end-of-sequence token included."""
        return tuple(token for done in self.rounds for token in done.token_ids)


@dataclass(frozen=True, slots=True)
class GeneratedBatch:
    """The texts of a batch."""

    texts: tuple[GeneratedText, ...]
    pad_token_id: int

    @property
    def output_ids(self) -> Tensor:
        """Prompts and new tokens: int64 ``[batch, longest]``, right-padded."""
        return right_padded([(*text.prompt, *text.token_ids) for text in self.texts], self.pad_token_id)

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that stood; None when none was drafted."""
        drafted = sum(done.drafted for text in self.texts for done in text.rounds)
        accepted = sum(done.accepted for text in self.texts for done in text.rounds)
        return accepted / drafted if drafted else None


def generate(
    engines: Engines, drafter: Drafter | None, prefix: Tensor, request: TextRequest,
    attention_mask: Tensor | None = None,
) -> GeneratedBatch:
    """Continue every row of ``prefix`` ``[batch, length]`` by rounds of ``drafter`` and the engines' verifier.

    A row ends with an end-of-sequence token, after ``request.max_len`` new tokens, or where the context is full.
    Raises ``InvalidInput`` for what cannot be continued, and whatever a worker raises.
    """
    description = engines.verifier.describe()
    if drafter is not None and request.gamma > description.max_draft_length:
        raise InvalidInput.field(
            "gamma", f"{description.model} was loaded for at most {description.max_draft_length} drafted tokens, got "
            f"{request.gamma}; load it with max_draft_length={request.gamma}")
    prompts = read_prompts(prefix, attention_mask, description.vocab_size)
    for row, prompt in enumerate(prompts):
        if len(prompt) >= description.max_model_len:
            raise InvalidInput.field(
                f"prefix[{row}]", f"is {len(prompt)} tokens long, and a sequence holds {description.max_model_len} "
                "including at least one new token; shorten it, or load the model with more kv_tokens")
    if request.constraint is not None and (problem := engines.grammars.check(request.constraint)):
        raise InvalidInput.field("constraint", f"{request.constraint.kind.value} {problem}")
    eos = engines.tokenizer.eos_token_ids
    sequences = [
        Sequence(
            str(row), prompt, request.max_len, sampling, eos, draft_length=request.gamma if drafter else 0,
            constraint=request.constraint)
        for row, (prompt, sampling) in enumerate(zip(prompts, request.samplings(len(prompts)), strict=True))
    ]
    engines.use_drafter(drafter)
    rounds = _run(engines, sequences)
    return GeneratedBatch(
        tuple(
            GeneratedText(tuple(sequence.prompt), tuple(rounds[sequence.request_id]), sequence.finish)
            for sequence in sequences
            if sequence.finish is not None
        ),
        min(eos, default=0),
    )


def _run(engines: Engines, sequences: Items[Sequence]) -> dict[str, list[Round]]:
    """Step until every sequence is finished; whatever happens, none is left in the loop."""
    loop = engines.loop
    rounds: dict[str, list[Round]] = {sequence.request_id: [] for sequence in sequences}
    counted = {sequence.request_id: (0, 0) for sequence in sequences}
    try:
        for sequence in sequences:
            loop.add(sequence)
        while loop.has_work:
            for commit in loop.step():
                name, stats = commit.sequence.request_id, commit.sequence.stats
                drafted, accepted = counted[name]
                counted[name] = (stats.drafted, stats.accepted)
                rounds[name].append(Round(commit.token_ids, stats.drafted - drafted, stats.accepted - accepted))
            if loop.drafter_error is not None:  # in one process a drafter is not lost, it is broken
                raise loop.drafter_error
    finally:
        for sequence in sequences:
            loop.remove(sequence)
    return rounds
