"""How probable the model itself found tokens: the log-softmax of its raw logits.

Before bias, penalties, temperature and filters, as vLLM does by default (its mode ``raw_logprobs``): the figure is the
model's, comparable between requests, and the same for every way of drawing. A pure function, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec.interfaces import TokenLogprobs


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[TokenLogprobs, ...]:
    """Log-probability of one token for each row, and of the row's ``top`` most probable ones, most probable first.

    ``logits``: ``[rows, vocab]`` float32, the model's; ``tokens``: one for each row.
    """
    logprobs = logits.log_softmax(-1)
    chosen: list[float] = logprobs.gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    ids: list[list[int]] = best.indices.tolist()
    values: list[list[float]] = best.values.tolist()
    return tuple(
        TokenLogprobs(logprob=own, top_token_ids=tuple(row_ids), top_logprobs=tuple(row_values))
        for own, row_ids, row_values in zip(chosen, ids, values, strict=True)
    )
