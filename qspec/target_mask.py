"""A grammar masks the target alone, between draft and acceptance.

The drafter knows nothing of it, and the text is exact all the same: both acceptance rules leave the target's
distribution as it is whatever the draft's is (``qspec.acceptance``). A drafted token that the grammar forbids has
probability 0 under the masked target, so it never stands, and the token in its place is drawn from the masked target,
or from its residual over the draft.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_target(adjusted: Tensor, logits: Tensor, allowed: Tensor) -> Tensor:
    """The logits that tokens are drawn from under a grammar.

    Args:
        adjusted: float ``[rows, vocab]``, behind ``qspec.logit_adjustment``, before the filters.
        logits: the model's own, of the same shape.
        allowed: bool ``[rows, vocab]``, with an allowed token in every row.

    Returns ``[rows, vocab]``. Where bans leave nothing that the grammar allows (a text that is complete before
    ``min_tokens``), the grammar has its way, with the model's own logits.
    """
    nothing = torch.tensor(float("-inf"), dtype=adjusted.dtype)
    masked = torch.where(allowed, adjusted, nothing)
    blocked = masked.isneginf().all(-1, keepdim=True)
    return torch.where(blocked, torch.where(allowed, logits, nothing), masked)
