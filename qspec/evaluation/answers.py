"""The model's own greedy answers: the text that a drafter is asked for, and that calibration should keep.

A draft is accepted or refused on what the verifier writes, not on what users ask, so acceptance is measured on answers;
and weights calibrated on a model's own text need no training data ("self-calibration", Williams et al. 2024,
arXiv 2410.17170).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qspec.engine.cached_decoder import CachedDecoder
from qspec.engine.passes import SequenceRows
from qspec.interfaces import Progress
from qspec.kernels.paged_attention import BlockSpan
from qspec.models.decoder import Decoder

_BLOCK = 64
_TOGETHER = 16
"""Prompts answered at once."""


@torch.inference_mode()
def greedy_answers(
    decoder: Decoder,
    prompts: Sequence[tuple[int, ...]],
    longest: int,
    eos_token_ids: frozenset[int],
    progress: Progress,
    keep: Callable[[list[tuple[int, ...]]], None] = lambda _answers: None,
) -> list[tuple[int, ...]]:
    """What ``decoder`` answers to each of ``prompts``, at most ``longest`` tokens, an end token included.

    ``keep`` is told the answers so far after each handful of prompts, in their order.
    """
    answers: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), _TOGETHER):
        progress("answering the prompts", start / len(prompts))
        answers += _answer(decoder, prompts[start : start + _TOGETHER], longest, eos_token_ids)
        keep(answers)
    return answers


def _answer(
    decoder: Decoder, prompts: Sequence[tuple[int, ...]], longest: int, eos_token_ids: frozenset[int]
) -> list[tuple[int, ...]]:
    spans, first = [], 0
    for prompt in prompts:
        blocks = -(-(len(prompt) + longest) // _BLOCK)
        spans.append(BlockSpan(tuple(range(first, first + blocks))))
        first += blocks
    cache = CachedDecoder(decoder, num_blocks=first, block_size=_BLOCK)
    texts = [list(prompt) for prompt in prompts]
    active = list(range(len(prompts)))
    hidden = torch.stack([
        cache.hidden([SequenceRows(prompt, 0, span)])[-1] for prompt, span in zip(prompts, spans, strict=True)
    ])
    while active:
        for index, token in zip(active, cache.logits(hidden).argmax(-1).tolist(), strict=True):
            texts[index].append(token)
        active = [
            index
            for index in active
            if texts[index][-1] not in eos_token_ids and len(texts[index]) < len(prompts[index]) + longest
        ]
        if active:
            hidden = cache.hidden([
                SequenceRows((texts[index][-1],), len(texts[index]) - 1, spans[index]) for index in active
            ])
    return [tuple(text[len(prompt) :]) for text, prompt in zip(texts, prompts, strict=True)]
