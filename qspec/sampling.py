"""From logits to a distribution, and from a distribution to a token.

Pure functions on one row at a time or on rows alike; a row's result never depends on the rows beside it. The same
filters (``qspec.filters``) are applied to the drafter's and to the verifier's logits, so that acceptance compares like
with like.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.filters import filtered_probs
from qspec.noise import NoiseKey, Purpose, gumbel, gumbel_of
from qspec.sampling_options import Sampling


def token_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that a token is drawn from.

    ``logits``: ``[rows, vocab]``, float; returns the same shape and dtype, rows summing to 1. Greedy: all mass on the
    first most probable token.
    """
    if sampling.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return filtered_probs(logits, sampling)


def confidence(logits: Tensor, sampling: Sampling) -> float:
    """Largest probability of the distribution that a token is drawn from; greedy: of the softmax. ``[1, vocab]``."""
    if sampling.greedy:
        return float((logits[0].max() - logits[0].logsumexp(-1)).exp())
    return min(float(token_probs(logits, sampling).max()), 1.0)


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
