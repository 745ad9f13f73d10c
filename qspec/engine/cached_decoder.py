"""A decoder with KV blocks of its own: what scores a text without a verifier, and what a separate drafter drafts with.

The workers' own caches lie in the arena and follow the slots of a batch. This one is private memory (zeroed lazily by
the operating system, so that what is never used costs nothing), and its caller says which blocks belong to which
sequence. It runs the same passes as the verifier (``VerifyPass``): over the verifier's decoder and row tiles, a row
gets the very bits that the verifier decides by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec.engine.passes import SequenceRows, VerifyPass
from qspec.kernels.paged_attention import BlockSpan
from qspec.kernels.row_tiles import CANDIDATE_ROWS, RowTiles
from qspec.models.decoder import Decoder

ANY_ROWS = RowTiles(CANDIDATE_ROWS)
"""Tiles for kernels whose rows need not have the same bits in every batch: drafting."""


class CachedDecoder:
    """``decoder`` over ``num_blocks`` private KV blocks of ``block_size`` positions."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_size: int,
        attention_tiles: RowTiles = ANY_ROWS,
        linear_tiles: RowTiles = ANY_ROWS,
    ) -> None:
        config = decoder.config
        shape = (config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self._decoder = decoder
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._attention_tiles, self._linear_tiles = attention_tiles, linear_tiles
        self.block_size = block_size

    @property
    def bytes(self) -> int:
        """Bytes of the cache when all of it is used."""
        return 2 * self._keys.nbytes

    def hidden(self, sequences: list[SequenceRows]) -> Tensor:
        """Run adjacent positions of some sequences, entering them into the cache: ``[rows, H]``, in their order."""
        rows = sum(len(sequence.token_ids) for sequence in sequences)
        verify_pass = VerifyPass(
            sequences, self._keys, self._values, heads=self._decoder.config.num_heads,
            attention_tiles=self._attention_tiles, linear_tiles=self._linear_tiles,
        )
        return self._decoder.hidden(verify_pass.token_ids, verify_pass.positions, verify_pass)[:rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]``, float32."""
        return self._decoder.logits(hidden)

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int], max_rows: int) -> Tensor:
        """Logits of one text from its first position: ``[tokens, V]``; ``max_rows`` positions are computed at once.

        The text must fit into the cache. It uses blocks 0, 1, …, whoever held them.
        """
        span = BlockSpan(tuple(range(-(-len(token_ids) // self.block_size))))
        parts = []
        for start in range(0, len(token_ids), max_rows):
            chunk = tuple(token_ids[start : start + max_rows])
            parts.append(self.logits(self.hidden([SequenceRows(chunk, start, span)])))
        return torch.cat(parts)
