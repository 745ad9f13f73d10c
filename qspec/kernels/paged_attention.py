"""Attention over KV blocks on the CPU: the verifier's, row-invariant, and the drafter's, with a tail.

A sequence's keys lie in blocks ``[kv_heads, block, D]``. Scores, exponentials and weighted values are computed block by
block, as a batch of products of one fixed shape, and the blocks' partial results are added from the first block to the
last. A row's result is therefore a function of its own query and of the keys up to its own position: blocks beyond it
contribute exact zeros, and no shape depends on the context or on the rows beside it (row counts go through the same
tiles as linear layers, ``row_tiles``). Blocks that lie one after the other are read in place, others are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.kernels.row_tiles import RowTiles, probe_row_tiles


@dataclass(frozen=True, slots=True)
class BlockSpan:
    """The KV blocks of one sequence, from position 0 on."""

    block_ids: tuple[int, ...]

    def read(self, cache: Tensor, count: int) -> Tensor:
        """The first ``count`` blocks of ``cache`` ``[blocks, kv_heads, block, D]``: a view where they are adjacent."""
        first = self.block_ids[0]
        if self.block_ids[:count] == tuple(range(first, first + count)):
            return cache[first : first + count]
        return cache.index_select(0, torch.tensor(self.block_ids[:count]))


def write_rows(cache: Tensor, rows: Tensor, block_ids: Tensor, offsets: Tensor) -> None:
    """Store ``rows`` ``[rows, kv_heads, D]`` at (block, offset): ``cache`` ``[blocks, kv_heads, block, D]``."""
    cache[block_ids, :, offsets] = rows


def causal_mask(positions: Tensor, blocks: int, block_size: int, kv_heads: int, group: int) -> Tensor:
    """0 where a row sees a key, -inf where not, for rows at ``positions``: ``[blocks·kv_heads, group·rows, block]``."""
    keys = torch.arange(blocks * block_size).view(blocks, 1, 1, 1, block_size)
    hidden = keys > positions.view(1, 1, 1, -1, 1)
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
    return mask.expand(-1, kv_heads, group, -1, -1).reshape(blocks * kv_heads, group * len(positions), block_size)


def attend_blocks(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend one tile of rows of one sequence.

    ``q``: ``[rows, heads, D]``; ``keys``, ``values``: ``[blocks, kv_heads, block, D]``; ``mask`` from ``causal_mask``.
    Returns ``[rows, heads·D]``. Every row must see at least one key.
    """
    rows, heads, head_dim = q.shape
    blocks, kv_heads, block_size, _ = keys.shape
    group = heads // kv_heads
    queries = q.view(rows, kv_heads, group, head_dim).permute(1, 2, 0, 3).reshape(1, kv_heads, group * rows, head_dim)
    queries = queries.expand(blocks, -1, -1, -1).reshape(blocks * kv_heads, group * rows, head_dim)
    flat_keys = keys.reshape(-1, block_size, head_dim).transpose(1, 2)
    scores = torch.baddbmm(mask, queries, flat_keys, alpha=head_dim**-0.5)
    scores = scores.view(blocks, kv_heads, group * rows, block_size)
    weights = scores.sub_(scores.amax(dim=(0, -1), keepdim=True)).exp_()
    mixed = torch.bmm(weights.view(-1, group * rows, block_size), values.reshape(-1, block_size, head_dim))
    mixed = mixed.view(blocks, kv_heads, group * rows, head_dim)
    normaliser = weights.sum(-1, keepdim=True)
    # cumsum adds from the first block to the last whatever their number; its last entry is the sum.
    mixed = mixed.cumsum(0)[-1].div_(normaliser.cumsum(0)[-1])  # [kv_heads, group·rows, D]
    return mixed.view(kv_heads, group, rows, head_dim).permute(2, 0, 1, 3).reshape(rows, heads * head_dim)


def probe_attention_tiles(
    heads: int, kv_heads: int, head_dim: int, block_size: int, candidates: tuple[int, ...]
) -> RowTiles:
    """Row counts for which ``attend_blocks`` gives a row the same bits at every place in the tile."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 5, kv_heads, block_size, head_dim, generator=generator)
    query = torch.randn(heads * head_dim, generator=generator)
    position = 4 * block_size - 1  # the last block is masked out entirely, as a shorter row's is in a longer tile

    def product(x: Tensor) -> Tensor:
        rows = x.shape[0]
        mask = causal_mask(torch.full((rows,), position), 5, block_size, kv_heads, heads // kv_heads)
        return attend_blocks(x.view(rows, heads, head_dim), keys, values, mask)

    return probe_row_tiles(product, query, candidates)


def attend_with_tail(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, tail_keys: Tensor, tail_values: Tensor
) -> Tensor:
    """The drafter's attention for one row: committed blocks, then the tail, without copying either.

    ``q``: ``[heads, D]``; ``keys``, ``values``: ``[blocks, kv_heads, block, D]`` (there may be no blocks); ``mask``:
    from ``causal_mask`` for the last committed position; ``tail_keys``, ``tail_values``: ``[kv_heads, tail, D]``, with
    tail at least 1. Returns ``[heads·D]``.
    """
    blocks, kv_heads, block_size, head_dim = keys.shape
    queries = q.reshape(kv_heads, -1, head_dim)  # [kv_heads, group, D]
    group, scale = queries.shape[1], head_dim**-0.5
    tail_scores = torch.bmm(queries, tail_keys.transpose(1, 2)).mul_(scale)
    if blocks == 0:
        return torch.bmm(tail_scores.softmax(-1), tail_values).reshape(-1)
    repeated = queries.expand(blocks, -1, -1, -1).reshape(blocks * kv_heads, group, head_dim)
    scores = torch.baddbmm(mask, repeated, keys.reshape(-1, block_size, head_dim).transpose(1, 2), alpha=scale)
    scores = scores.view(blocks, kv_heads, group, block_size).permute(1, 2, 0, 3).reshape(kv_heads, group, -1)
    weights = torch.cat([scores, tail_scores], -1).softmax(-1)
    committed = weights[:, :, : blocks * block_size].view(kv_heads, group, blocks, block_size).permute(2, 0, 1, 3)
    mixed = torch.bmm(committed.reshape(-1, group, block_size), values.reshape(-1, block_size, head_dim))
    mixed = mixed.view(blocks, kv_heads, group, head_dim).sum(0)
    return mixed.baddbmm_(weights[:, :, blocks * block_size :], tail_values).reshape(-1)
