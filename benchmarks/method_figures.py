"""What every method costs on one model: perplexity, and what it would draft well, measured in one pass over them.

Texts to draft are what a drafter meets in use: the answers of the model itself, in fp32 and greedy, behind a prompt.
Only the answers' positions count. The logits of a verifier are kept as long as there are drafters to be compared with
it (170 MB for 850 positions and 49,152 tokens), weights for one method at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.method_pairs import LIKE_Q4_1, Pair, all_choices, sensible_pairs
from qspec import QuantizedModel
from qspec.api.prompt_batch import right_padded
from qspec.api.sampling_functions import autoregressive_texts
from qspec.api.text_request import TextRequest
from qspec.engine.linears import is_packed
from qspec.evaluation.agreement import NO_LOSS, Agreement, TextLoss, compare_logits, text_loss
from qspec.evaluation.scoring import ScoredModel, numbers, text_logits
from qspec.interfaces import Progress
from qspec.kernels.int8_linear import has_kernel
from qspec.models.decoder import Decoder
from qspec.quant.methods import Backend, Choice, choose_verify


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt and what the model answers."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFigures:
    """One method, in all linear layers."""

    choice: Choice
    layer_bytes: int
    """Of all linear layers, scales included."""
    weight_error_db: float | None
    """Signal over error of the weights, dB: how well the format holds them; None: exactly."""
    own_format: bool
    """Whether the model file may be in this format already, so that the figures say nothing about other models."""
    loss: TextLoss
    against_fp32: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFigures:
    """One pair."""

    pair: Pair
    shared_bytes: int
    private_bytes: int
    agreement: Agreement


def own_answers(name: str, prompts: Sequence[Sequence[int]], most_tokens: int) -> list[Answer]:
    """What the model ``name`` answers to each prompt, greedily and in fp32; an end-of-sequence token included."""
    with QuantizedModel(name) as model:
        prefix = right_padded(prompts, 0)
        mask = right_padded([[1] * len(prompt) for prompt in prompts], 0)
        batch = autoregressive_texts(prefix, model, TextRequest(max_len=most_tokens, temperature=0), mask)
        return [Answer(text.prompt, text.token_ids) for text in batch.texts]


def answer_logits(decoder: Decoder, answers: Sequence[Answer]) -> Tensor:
    """Logits of every answer's tokens: ``[tokens of all answers, V]``."""
    return torch.cat([
        text_logits(decoder, (*answer.prompt, *answer.token_ids))[len(answer.prompt) - 1 : -1] for answer in answers
    ])


def measure_methods(
    model: ScoredModel, answers: Sequence[Answer], text: Sequence[Sequence[int]], progress: Progress
) -> tuple[list[MethodFigures], list[PairFigures]]:
    """Figures of every variant that the model's layers can be stored in, and of every pair of them that makes sense.

    ``text``: pieces to measure perplexity on.
    """
    choices = [choice for choice in all_choices() if model.misfit(choice.variant.weights) is None]
    own = own_formats(model)
    pairs = sensible_pairs(choices, own)
    longest = max(*(len(answer.prompt) + len(answer.token_ids) for answer in answers), *map(len, text))
    fp32 = choose_verify("none", Backend.CPU)
    deciding = {numbers(fp32), *(numbers(pair.verify) for pair in pairs)}
    targets: dict[tuple[str, str], Tensor] = {}  # of verifiers, by the numbers that they compute with
    decoded: dict[str, Tensor] = {}  # of all layers, in the current format
    error: float | None = None
    methods: list[MethodFigures] = []
    agreements: dict[int, Agreement] = {}  # by the pair's place
    for index, choice in enumerate(choices):
        weights = choice.variant.weights
        progress(choice.label, index / len(choices))
        if index == 0 or weights != choices[index - 1].variant.weights:
            decoded = {name: model.decoded(name, weights) for name in model.layer_names}
            error = weight_error_db(model, decoded)
        decoder = model.decoder({name: model.layer(name, choice, decoded[name]) for name in decoded}, longest)
        logits = answer_logits(decoder, answers)
        if numbers(choice) in deciding:
            targets[numbers(choice)] = logits
        for place, pair in enumerate(pairs):
            if pair.draft == choice:
                agreements[place] = compare_logits(logits, targets[numbers(pair.verify)])
        methods.append(MethodFigures(
            choice=choice,
            layer_bytes=sum(model.layer_bytes(name, weights) for name in model.layer_names),
            weight_error_db=error,
            own_format=weights in own,
            loss=loss_of_text(decoder, text),
            against_fp32=compare_logits(logits, targets[numbers(fp32)]),
        ))
    return methods, [_pair_figures(model, pair, agreements[place]) for place, pair in enumerate(pairs)]


def own_formats(model: ScoredModel) -> frozenset[str]:
    """Weight formats that the model file may be in already, and would be reproduced by."""
    return LIKE_Q4_1 | frozenset(model.model.stored.values())


def weight_error_db(model: ScoredModel, decoded: Mapping[str, Tensor]) -> float | None:
    """Signal over error of linear layers' decoded weights, dB; None when every weight is held exactly."""
    signal = error = 0.0
    for name, held in decoded.items():
        exact = model.decoded(name, "fp32")
        signal += float(exact.square().sum())
        error += float((exact - held).square().sum())
    return 10 * math.log10(signal / error) if error else None


def loss_of_text(decoder: Decoder, text: Sequence[Sequence[int]]) -> TextLoss:
    """What ``decoder`` makes of the pieces of a text."""
    pieces = ((text_logits(decoder, piece), torch.tensor(piece, dtype=torch.int64)) for piece in text)
    return sum((text_loss(*piece) for piece in pieces), NO_LOSS)


def _pair_figures(model: ScoredModel, pair: Pair, agreement: Agreement) -> PairFigures:
    """Bytes as the workers keep them: the drafter's own copy where it shares nothing, or its kernel packs the weights.
    """
    weights = pair.draft.variant.weights
    own = 0
    if not pair.shares or (is_packed(pair.draft) and has_kernel()):
        own = sum(model.layer_bytes(name, weights) for name in model.layer_names)
    return PairFigures(
        pair=pair, shared_bytes=model.store_bytes(pair.verify), private_bytes=own, agreement=agreement)
