"""A decoder with KV blocks of its own: what scores a text without a verifier, and what a separate drafter drafts with.

The workers' own caches lie in the arena and follow the slots of a batch. This one is private memory (zeroed lazily by
the operating system, so that what is never used costs nothing), and its caller says which blocks belong to which
sequence. Over the verifier's forward a row gets the very bits that the verifier decides by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec.engine.forward import Forward
from qspec.engine.passes import SequenceRows
from qspec.kernels.paged_attention import BlockSpan


class CachedDecoder:
    """``forward`` over ``num_blocks`` private KV blocks of ``block_size`` positions."""

    def __init__(self, forward: Forward, *, num_blocks: int, block_size: int) -> None:
        config = forward.config
        shape = (config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self._forward = forward
        self._keys, self._values = forward.empty_cache(shape), forward.empty_cache(shape)
        self.block_size = block_size

    @property
    def bytes(self) -> int:
        """Bytes of the cache when all of it is used."""
        return 2 * self._keys.nbytes

    def hidden(self, sequences: list[SequenceRows]) -> Tensor:
        """Run adjacent positions of some sequences, entering them into the cache: ``[rows, H]``, in their order."""
        with self._forward.computing():
            return self._forward.rows(sequences, self._keys, self._values)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]``, float32."""
        with self._forward.computing():
            return self._forward.logits(hidden)

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
