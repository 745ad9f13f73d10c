"""From a tensor of prompts to lists of tokens, and back with the texts that were made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec.errors import InvalidInput

MOST_ROWS = 1 << 16
"""Rows that the noise can tell apart."""


def read_prompts(
    prefix: Tensor, attention_mask: Tensor | None, vocab_size: int, field: str = "prefix"
) -> list[list[int]]:
    """The tokens of each row of ``prefix`` ``[batch, length]`` where ``attention_mask`` (same shape) is not 0.

    ``InvalidInput`` for another shape or type, an empty row, and tokens that the vocabulary lacks.
    """
    if prefix.dim() != 2 or prefix.is_floating_point() or prefix.dtype == torch.bool:
        raise InvalidInput.field(field, "must be an integer tensor of token ids, [batch, length]")
    if not 1 <= prefix.shape[0] <= MOST_ROWS:
        raise InvalidInput.field(field, f"has {prefix.shape[0]} rows; give between 1 and {MOST_ROWS}")
    if attention_mask is not None and attention_mask.shape != prefix.shape:
        raise InvalidInput.field(
            "attention_mask", f"has shape {list(attention_mask.shape)}, and {field} has {list(prefix.shape)}")
    keep = torch.ones_like(prefix, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    prompts = [[int(token) for token in row[kept]] for row, kept in zip(prefix, keep.to(prefix.device), strict=True)]
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InvalidInput.field(f"{field}[{index}]", "has no token; give at least one, such as the BOS token")
        foreign = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if foreign is not None:
            raise InvalidInput.field(
                f"{field}[{index}]", f"token {foreign} is outside the vocabulary of {vocab_size} tokens")
    return prompts


def right_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Rows of tokens as one int64 tensor ``[batch, longest]``; shorter rows end in ``pad_token_id``."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows], dtype=torch.int64)
