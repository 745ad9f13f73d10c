"""The integers of a pass on a GPU: tokens, places, tiles and block tables, sent in one copy from pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import numpy.typing
import torch
from torch import Tensor

from qspec.engine.cuda_buffers import PassLimits
from qspec.kernels.triton.attention import TILE
from qspec.kernels.triton.row_draws import Field, PlacedDraw, write_draws


@dataclass(frozen=True, slots=True)
class PassInputs:
    """What the kernels of a pass of M rows read; all int32, on the device."""

    token_ids: Tensor
    """``[M]``."""
    positions: Tensor
    """``[M]``."""
    slots: Tensor
    """``[M]``: row of the block table; -1: padding."""
    tiles: Tensor
    """``[tiles, 3]``: first row, rows, slot (``attention.plan_tiles``)."""
    block_table: Tensor
    """``[sequences, blocks]``."""
    committed: Tensor
    """``[sequences]``: positions that tails follow; read in draft steps alone."""
    step: Tensor
    """``[1]``: number of the draft step."""
    draws: Tensor
    """``[fields, most rows]``: how tokens are drawn (``row_draws``)."""

    @property
    def rows(self) -> int:
        """M."""
        return self.token_ids.shape[0]


class StagedInputs:
    """Pinned memory and its copy on the device, both at fixed places."""

    def __init__(self, limits: PassLimits, group: int, device: torch.device) -> None:
        """``group``: queries per key/value head."""
        self._limits, self._per_tile = limits, max(1, TILE // group)
        self._most_tiles = self._tile_count(limits.rows)
        rows, table = limits.rows, limits.sequences * limits.blocks
        sizes = {"token_ids": rows, "positions": rows, "slots": rows, "step": 1, "committed": limits.sequences,
                 "tiles": 3 * self._most_tiles, "table": table, "draws": len(Field) * rows}
        total = sum(map(_aligned, sizes.values()))
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=on_gpu)
        self._device = torch.zeros(total, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if on_gpu else None
        first = 0
        self._host_parts: dict[str, numpy.typing.NDArray[numpy.int32]] = {}
        self._parts: dict[str, Tensor] = {}
        for name, size in sizes.items():
            self._host_parts[name] = self._host[first : first + size].numpy()
            self._parts[name] = self._device[first : first + size]
            first += _aligned(size)

    def upload(
        self, token_ids: Sequence[int], positions: Sequence[int], counts: Sequence[tuple[int, int]],
        blocks: Sequence[tuple[int, Sequence[int]]], committed: Sequence[tuple[int, int]] = (), *, padded: int,
        draws: Sequence[PlacedDraw] = (),
    ) -> PassInputs:
        """Send a pass; ``padded`` rows in all.

        ``counts``: (slot, adjacent rows) in the order of the rows; ``blocks``: (slot, block ids); ``committed``: (slot,
        positions); ``draws``: how tokens are drawn.
        """
        if self._copied is not None:
            self._copied.synchronize()  # the last pass's copy may still be on its way
        parts, rows = self._host_parts, len(token_ids)
        parts["token_ids"][:rows], parts["token_ids"][rows:padded] = token_ids, 0
        parts["positions"][:rows], parts["positions"][rows:padded] = positions, 0
        parts["slots"][:padded] = -1
        parts["step"][0] = 0
        tiles, first = parts["tiles"].reshape(-1, 3), 0
        used = 0
        for slot, count in counts:
            parts["slots"][first : first + count] = slot
            for at in range(0, count, self._per_tile):
                tiles[used] = first + at, min(self._per_tile, count - at), slot
                used += 1
            first += count
        tiles[used : self._tile_count(padded)] = 0
        table = parts["table"].reshape(self._limits.sequences, self._limits.blocks)
        for slot, block_ids in blocks:
            table[slot, : len(block_ids)] = block_ids
        for slot, length in committed:
            parts["committed"][slot] = length
        matrix = parts["draws"].reshape(len(Field), -1)
        matrix[:, :padded] = 0
        write_draws(matrix, draws, positions)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return self.of(padded)

    def of(self, rows: int) -> PassInputs:
        """The places of a pass of ``rows`` rows, padding included."""
        parts = self._parts
        return PassInputs(
            token_ids=parts["token_ids"][:rows], positions=parts["positions"][:rows], slots=parts["slots"][:rows],
            tiles=parts["tiles"].view(-1, 3)[: self._tile_count(rows)],
            block_table=parts["table"].view(self._limits.sequences, self._limits.blocks),
            committed=parts["committed"], step=parts["step"], draws=parts["draws"].view(len(Field), -1))

    def _tile_count(self, rows: int) -> int:
        """Tiles that any pass of so many rows can need."""
        return min(rows, -(-rows // self._per_tile) + self._limits.sequences)


def _aligned(count: int) -> int:
    """Integers up to the next one at a multiple of 256 bytes, as vector loads like it."""
    return -(-count // 64) * 64
