"""From logits to a distribution, and from a distribution to a token.

Pure functions on one row at a time or on rows alike; a row's result never depends on the rows beside it. The same
filters are applied to the drafter's and to the verifier's logits, so that acceptance compares like with like.
Order: temperature, top-k, top-p (over what top-k left), as in transformers and vLLM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.interfaces import Sampling
from qspec.noise import NoiseKey, Purpose, gumbel, gumbel_of

_FEW_TOKENS = 256


def token_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that a token is drawn from.

    ``logits``: ``[rows, vocab]``, float; returns the same shape and dtype, rows summing to 1. Greedy: all mass on the
    first most probable token. Top-k keeps ties of the k-th logit; top-p breaks ties by token id.
    """
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        threshold = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < threshold, float("-inf"))
    probs = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1.0:
        probs = _keep_top_p(probs, sampling.top_p)
    return probs


def confidence(logits: Tensor, sampling: Sampling) -> float:
    """Largest probability of the distribution that a token is drawn from; greedy: of the softmax. ``[1, vocab]``."""
    if sampling.greedy:
        return float((logits[0].max() - logits[0].logsumexp(-1)).exp())
    return min(float(token_probs(logits, sampling).max()), 1.0)


def _keep_top_p(probs: Tensor, top_p: float) -> Tensor:
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


def draw(probs: Tensor, key: NoiseKey, position: int, purpose: Purpose) -> int:
    """Draw a token by the Gumbel-max trick: argmax over tokens of log(weight) + noise.

    ``probs``: ``[vocab]``, non-negative weights, not all zero; they need not sum to 1. Tokens of weight 0 are never
    drawn. With the same noise, two close distributions give the same token with probability at least (1-d)/(1+d), d
    their total variation distance: that is what coupled acceptance lives on.
    """
    possible = probs.nonzero().squeeze(-1)
    if len(possible) > len(probs) // 8:
        noise = gumbel(key, position, purpose, len(probs))
        return int((probs.double().log() + torch.from_numpy(noise)).argmax())
    noise = gumbel_of(key, position, purpose, possible.numpy())
    return int(possible[(probs[possible].double().log() + torch.from_numpy(noise)).argmax()])
