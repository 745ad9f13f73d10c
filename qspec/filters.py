"""Which tokens a distribution keeps: pure functions on rows, the same for drafter and verifier.

Order: temperature, top-k, top-p, min-p, typical-p, each over what the one before it left, renormalised: the order of
transformers (``GenerationMixin._get_logits_processor``), of which vLLM has all but the last and applies min-p before
top-k and top-p. Every filter keeps the most probable tokens that it can, and at least one. A row's result never depends
on the rows beside it: sums go along rows only, and what is looked at first to save time does not change what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.sampling_options import Sampling

_FEW_TOKENS = 256


def filtered_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from at a temperature above 0: ``[rows, vocab]``, float, rows summing to 1.

    Top-k keeps ties of the k-th logit; top-p and typical-p break ties by token id; min-p keeps what equals its bound.
    """
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        threshold = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
    probs = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1.0:
        probs = keep_top_p(probs, sampling.top_p)
    if sampling.min_p > 0.0:
        probs = keep_min_p(probs, sampling.min_p)
    if sampling.typical_p < 1.0:
        probs = keep_typical_p(probs, sampling.typical_p)
    return probs


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Keep the most probable tokens of each row ``[rows, vocab]`` until their sum reaches ``top_p``; renormalise.

    Looks at the few largest first: they reach ``top_p`` nearly always, and a whole vocabulary takes long to sort.
    """
    vocab_size = probs.shape[-1]
    for count in (min(_FEW_TOKENS, vocab_size), vocab_size):
        ranked = probs.topk(count, dim=-1).values
        reached = ranked.cumsum(-1)
        if count == vocab_size or bool((reached[:, -1] >= top_p).all()):
            break
    last = (reached < top_p).sum(-1, keepdim=True).clamp(max=vocab_size - 1)  # [rows, 1] rank of the last one kept
    threshold = ranked.gather(-1, last)
    ties = probs == threshold
    kept_ties = last + 1 - (ranked > threshold).sum(-1, keepdim=True)
    kept = (probs > threshold) | (ties & (ties.cumsum(-1) <= kept_ties))
    return probs.where(kept, 0.0) / reached.gather(-1, last)


def keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as probable as the row's most probable one; renormalise. ``[rows, vocab]``.

    Nguyen et al., "Turning up the heat: min-p sampling", ICLR 2025, section 3.
    """
    kept = probs.where(probs >= min_p * probs.amax(-1, keepdim=True), 0.0)
    return kept / _row_sums(kept)


def keep_typical_p(probs: Tensor, typical_p: float) -> Tensor:
    """Keep the tokens of each row whose surprise is nearest to its entropy until their sum reaches ``typical_p``.

    Renormalises; impossible tokens are never kept. ``[rows, vocab]``. Meister et al., "Locally typical sampling", TACL
    2023, section 3.
    """
    possible = probs > 0
    surprise = -probs.log()  # [rows, vocab], infinite where impossible
    entropy = _row_sums(probs * surprise.where(possible, 0.0))
    order = _most_typical((surprise - entropy).abs(), probs, typical_p)
    fewer = probs.gather(-1, order).cumsum(-1) < typical_p  # up to this rank there is not enough
    ranks = torch.arange(order.shape[-1], device=probs.device)
    kept = torch.zeros_like(possible).scatter_(-1, order, ranks <= fewer.sum(-1, keepdim=True))
    probs = probs.where(kept, 0.0)
    return probs / _row_sums(probs)


def _most_typical(distance: Tensor, probs: Tensor, mass: float) -> Tensor:
    """Token ids of each row by distance, then by id, at least until their probabilities reach ``mass``.

    Looks at the few nearest first. They do where the mass is reached before the farthest of them: nobody who is left
    out is as near as those that count.
    """
    if distance.shape[-1] > _FEW_TOKENS:
        few = distance.topk(_FEW_TOKENS, dim=-1, largest=False).indices.sort(-1).values
        near, order = distance.gather(-1, few).sort(dim=-1, stable=True)
        ids = few.gather(-1, order)
        inside = near < near[:, -1:]
        if bool(((probs.gather(-1, ids).cumsum(-1) >= mass) & inside).any(-1).all()):
            return ids
    return distance.argsort(dim=-1, stable=True)


def _row_sums(values: Tensor) -> Tensor:
    """``[rows, 1]``, added up from left to right: a plain sum may be split among threads where there are few rows."""
    return values.cumsum(-1)[:, -1:]
