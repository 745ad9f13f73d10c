"""One verify pass: the rows of a batch, and attention over the blocks that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.kernels.paged_attention import BlockSpan, attend_blocks, causal_mask, write_rows
from qspec.kernels.row_tiles import RowTiles


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Adjacent positions of one sequence: ``token_ids`` at ``start``, ``start + 1``, … over ``span``'s blocks."""

    token_ids: tuple[int, ...]
    start: int
    span: BlockSpan


def split_passes(
    sequences: Sequence[SequenceRows], *, rows: int, sequences_each: int
) -> list[list[SequenceRows]]:
    """Sequences in passes of at most so many rows and sequences; one may continue in the next pass."""
    passes: list[list[SequenceRows]] = [[]]
    room = rows
    for sequence in sequences:
        at = 0
        while at < len(sequence.token_ids):
            if not room or len(passes[-1]) == sequences_each:
                passes.append([])
                room = rows
            taken = sequence.token_ids[at : at + room]
            passes[-1].append(SequenceRows(taken, sequence.start + at, sequence.span))
            at, room = at + len(taken), room - len(taken)
    return passes


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows of one sequence that are attended together, padded to a size of the row tiles."""

    rows: slice
    size: int
    span: BlockSpan
    blocks: int
    mask: Tensor


class VerifyPass:
    """Token ids and positions of a batch's rows, and the attention callback that the decoder runs on them.

    Writes every row's key and value into its block, then attends each sequence's rows over its own blocks. A small
    batch is padded once, to a size of the linear layers' row tiles, so that no layer has to; padding rows attend to
    nothing.
    """

    def __init__(
        self,
        sequences: list[SequenceRows],
        keys: Tensor,
        values: Tensor,
        *,
        heads: int,
        attention_tiles: RowTiles,
        linear_tiles: RowTiles,
    ) -> None:
        block_size, kv_heads = keys.shape[3], keys.shape[2]
        self._keys, self._values = keys, values  # [layers, blocks, kv_heads, block, D]
        token_ids: list[int] = []
        positions: list[int] = []
        block_ids: list[int] = []
        self._tiles: list[_Tile] = []
        for sequence in sequences:
            first = len(token_ids)
            own = range(sequence.start, sequence.start + len(sequence.token_ids))
            token_ids.extend(sequence.token_ids)
            positions.extend(own)
            block_ids.extend(sequence.span.block_ids[position // block_size] for position in own)
            for start, stop, size in attention_tiles.plan(len(own)):
                # Padding rows repeat the last position: they must see a key, and their results are dropped.
                at = torch.tensor([own[min(index, stop - 1)] for index in range(start, start + size)])
                blocks = own[stop - 1] // block_size + 1
                mask = causal_mask(at, blocks, block_size, kv_heads, heads // kv_heads)
                self._tiles.append(_Tile(slice(first + start, first + stop), size, sequence.span, blocks, mask))
        self._rows = len(token_ids)
        self._padding = linear_tiles.padded(self._rows) - self._rows
        self.token_ids = torch.tensor(token_ids + [0] * self._padding, dtype=torch.int64)
        self.positions = torch.tensor(positions + [0] * self._padding, dtype=torch.int64)
        self._block_ids = torch.tensor(block_ids, dtype=torch.int64)
        self._offsets = self.positions[: self._rows] % block_size

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The decoder's attention: ``q`` ``[rows, heads, D]``, ``k``, ``v`` ``[rows, kv_heads, D]``."""
        keys, values = self._keys[layer], self._values[layer]
        write_rows(keys, k[: self._rows], self._block_ids, self._offsets)
        write_rows(values, v[: self._rows], self._block_ids, self._offsets)
        parts = []
        for tile in self._tiles:
            rows = q[tile.rows]
            padding = tile.size - rows.shape[0]
            if padding:
                rows = torch.cat([rows, rows[-1:].expand(padding, -1, -1)])
            read_keys, read_values = tile.span.read(keys, tile.blocks), tile.span.read(values, tile.blocks)
            mixed = attend_blocks(rows, read_keys, read_values, tile.mask)
            parts.append(mixed[: mixed.shape[0] - padding])
        if self._padding:
            parts.append(q.new_zeros(self._padding, parts[0].shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
