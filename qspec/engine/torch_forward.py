"""The forward on torch's operations: the decoder, with rows padded to tiles where every row must have the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.engine.forward import DraftCache, DraftContext
from qspec.engine.passes import SequenceRows, VerifyPass
from qspec.kernels.paged_attention import BlockSpan, attend_with_tail, causal_mask
from qspec.kernels.row_tiles import CANDIDATE_ROWS, RowTiles
from qspec.models.config import DecoderConfig
from qspec.models.decoder import Decoder

ANY_ROWS = RowTiles(CANDIDATE_ROWS)
"""Tiles for kernels whose rows need not have the same bits in every batch: drafting."""


class TorchForward:
    """``qspec.engine.forward.DraftForward`` over a decoder."""

    def __init__(
        self, decoder: Decoder, *, attention_tiles: RowTiles = ANY_ROWS, linear_tiles: RowTiles = ANY_ROWS
    ) -> None:
        self.decoder = decoder
        self._attention_tiles, self._linear_tiles = attention_tiles, linear_tiles

    @property
    def config(self) -> DecoderConfig:
        """See ``Forward``."""
        return self.decoder.config

    def rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """See ``Forward``."""
        rows = sum(len(sequence.token_ids) for sequence in sequences)
        verify_pass = VerifyPass(
            list(sequences), keys, values, heads=self.config.num_heads,
            attention_tiles=self._attention_tiles, linear_tiles=self._linear_tiles,
        )
        return self.decoder.hidden(verify_pass.token_ids, verify_pass.positions, verify_pass)[:rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Forward``."""
        return self.decoder.logits(hidden)

    def greedy(self, hidden: Tensor) -> list[int]:
        """See ``Forward``."""
        tokens: list[int] = self.logits(hidden).argmax(-1).tolist()
        return tokens

    def empty_cache(self, shape: tuple[int, ...]) -> Tensor:
        """See ``Forward``."""
        return torch.zeros(shape)

    def for_drafting(self) -> TorchForward:
        """See ``Forward``."""
        return TorchForward(self.decoder)

    def computing(self) -> AbstractContextManager[object]:
        """See ``Forward``: these are torch's own threads."""
        return nullcontext()

    def draft_pass(self, contexts: Sequence[DraftContext], cache: DraftCache) -> _TorchDraftPass:
        """See ``DraftForward``."""
        return _TorchDraftPass(self.decoder, contexts, cache)


@dataclass(frozen=True, slots=True)
class _Committed:
    """What a sequence's queries attend to before its tail."""

    length: int
    keys: list[Tensor]
    """Per layer, the blocks that hold it: ``[blocks, kv_heads, block, D]``."""
    values: list[Tensor]
    mask: Tensor
    """Hides what lies behind it in its last block."""


class _TorchDraftPass:
    """See ``DraftPass``."""

    def __init__(self, decoder: Decoder, contexts: Sequence[DraftContext], cache: DraftCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._committed = {context.slot: self._read(context) for context in contexts}

    def step(self, tokens: Mapping[int, int], step: int) -> Tensor:
        """See ``DraftPass``."""
        cache, committed = self._cache, self._committed
        token_ids = torch.tensor(list(tokens.values()))
        positions = torch.tensor([committed[slot].length + step for slot in tokens])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows = []
            for index, slot in enumerate(tokens):
                tail_keys, tail_values = cache.tail_keys[layer, slot], cache.tail_values[layer, slot]
                tail_keys[:, step] = k[index]  # [kv_heads, k_max, D]
                tail_values[:, step] = v[index]
                rows.append(attend_with_tail(
                    q[index], committed[slot].keys[layer], committed[slot].values[layer], committed[slot].mask,
                    tail_keys[:, : step + 1], tail_values[:, : step + 1],
                ))
            return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

        return self._decoder.hidden(token_ids, positions, attend)

    def _read(self, context: DraftContext) -> _Committed:
        keys, values = self._cache.keys, self._cache.values
        kv_heads, block_size = keys.shape[2:4]
        span, count = BlockSpan(context.block_ids), len(context.block_ids)
        layers, empty = range(keys.shape[0]), keys[0, :0]
        return _Committed(
            length=context.length,
            keys=[span.read(keys[layer], count) if count else empty for layer in layers],
            values=[span.read(values[layer], count) if count else empty for layer in layers],
            mask=causal_mask(
                torch.tensor([context.length - 1]), count, block_size, kv_heads,
                self._decoder.config.num_heads // kv_heads,
            ),
        )
