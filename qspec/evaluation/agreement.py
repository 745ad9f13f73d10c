"""How much of what one model says another one says too, and how well a model predicts a text. Mathematics on logits.

Every figure is a sum over positions, so that texts are added up and a mean is taken once, at the end; the sums are kept
in float64. Nothing here knows where logits come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 128
"""Positions that are turned into distributions at once: a vocabulary of 49,152 makes 25 MB of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A draft model beside a target model over some positions; records of several texts are added up."""

    positions: int
    same_argmax: int
    """Positions where both models' most probable tokens are the same."""
    overlap_sum: float
    """Sum of Σ_x min(p(x), q(x))."""
    divergence_sum: float
    """Sum of KL(target ‖ draft), nats."""

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            positions=self.positions + other.positions,
            same_argmax=self.same_argmax + other.same_argmax,
            overlap_sum=self.overlap_sum + other.overlap_sum,
            divergence_sum=self.divergence_sum + other.divergence_sum,
        )

    @property
    def greedy(self) -> float:
        """Probability that a draft stands at temperature 0: share of positions with the same most probable token."""
        return self.same_argmax / self.positions

    @property
    def acceptance(self) -> float:
        """Expected probability that a draft stands at temperature 1: the mean of Σ_x min(p(x), q(x)).

        Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", theorem 3.5 and
        corollary 3.6: one minus the total variation distance of the two distributions.
        """
        return self.overlap_sum / self.positions

    @property
    def divergence(self) -> float:
        """Mean KL(target ‖ draft), nats a token; infinite where the draft excludes a token that the target may say."""
        return self.divergence_sum / self.positions


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLoss:
    """How well a model predicts texts, each token from those before it; records of several texts are added up."""

    tokens: int
    """Predicted tokens: all but a text's first."""
    nats: float
    """Sum of -ln p(token | those before it)."""

    def __add__(self, other: TextLoss) -> TextLoss:
        return TextLoss(tokens=self.tokens + other.tokens, nats=self.nats + other.nats)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite where that does not fit a number."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf


NO_AGREEMENT = Agreement(positions=0, same_argmax=0, overlap_sum=0.0, divergence_sum=0.0)
"""What sums over texts begin with."""
NO_LOSS = TextLoss(tokens=0, nats=0.0)
"""What sums over texts begin with."""


def compare_logits(draft: Tensor, target: Tensor) -> Agreement:
    """The agreement of two models' logits at the same positions, both ``[positions, V]``."""
    if draft.shape != target.shape or draft.dim() != 2:
        raise ValueError(f"logits of two shapes: {tuple(draft.shape)} and {tuple(target.shape)}")
    total = NO_AGREEMENT
    for draft_rows, target_rows in zip(draft.split(_ROWS), target.split(_ROWS), strict=True):
        log_q, log_p = draft_rows.float().log_softmax(-1), target_rows.float().log_softmax(-1)  # [rows, V]
        p = log_p.exp()
        overlap = torch.minimum(p, log_q.exp()).sum(-1, dtype=torch.float64)
        divergence = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1, dtype=torch.float64)
        total += Agreement(
            positions=len(draft_rows),
            same_argmax=int((draft_rows.argmax(-1) == target_rows.argmax(-1)).sum()),
            overlap_sum=float(overlap.sum()),
            divergence_sum=float(divergence.sum()),
        )
    return total


def text_loss(logits: Tensor, token_ids: Tensor) -> TextLoss:
    """The loss of a text ``[positions]`` under its own logits ``[positions, V]``: row i predicts token i + 1."""
    if len(logits) != len(token_ids):
        raise ValueError(f"{len(logits)} rows of logits for {len(token_ids)} tokens")
    nats = 0.0
    for rows, following in zip(logits[:-1].split(_ROWS), token_ids[1:].split(_ROWS), strict=True):
        nats += float(torch.nn.functional.cross_entropy(rows.float(), following, reduction="none").double().sum())
    return TextLoss(tokens=max(len(token_ids) - 1, 0), nats=nats)
