"""The forward on the native CPU kernels: whole decoder steps in C++ over the stored weights and the cache, in place.

Rows need no tiles: a row's bits depend on it alone (``qspec.kernels.native``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from qspec.engine.forward import DraftCache, DraftContext
from qspec.engine.passes import SequenceRows
from qspec.engine.weights import StoredEmbedding
from qspec.kernels.native.decoder import DraftRow, NativeDecoder
from qspec.kernels.native.decoder import SequenceRows as NativeRows
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights
from qspec.models.config import DecoderConfig, Positions
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.method_plan import MethodPlan


class NativeForward:
    """``qspec.engine.forward.DraftForward`` over stored weights.

    ``parts``: the linear layers in the formats of ``plan``; ``tensors``: norms, biases and positions by canonical name.
    All are read where they are and kept alive.
    """

    def __init__(
        self,
        config: DecoderConfig,
        plan: MethodPlan,
        parts: Mapping[str, Parts],
        tensors: Mapping[str, Tensor],
        embedding: StoredEmbedding,
        max_positions: int,
        threads: Threads,
    ) -> None:
        if config.positions is Positions.LEARNED:
            max_positions = min(max_positions, config.max_position)
        layers = {
            name: native_layer(
                plan.weights(name), stored, plan.layers[name].variant.activations, tensors.get(name + ".bias"))
            for name, stored in parts.items()
        }
        self._decoder = NativeDecoder(
            config, tensors, layers, max_positions, threads, embedding=_embedding(embedding))

    @property
    def config(self) -> DecoderConfig:
        """See ``Forward``."""
        return self._decoder.config

    def rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """See ``Forward``."""
        rows = [NativeRows(each.token_ids, each.start, each.span.block_ids) for each in sequences]
        return self._decoder.verify_rows(rows, keys, values)

    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Forward``."""
        return self._decoder.logits(hidden)

    def greedy(self, hidden: Tensor) -> list[int]:
        """See ``Forward``; the logits are never stored."""
        return self._decoder.greedy(hidden)

    def empty_cache(self, shape: tuple[int, ...]) -> Tensor:
        """See ``Forward``."""
        return torch.zeros(shape)

    def for_drafting(self) -> NativeForward:
        """See ``Forward``."""
        return self

    def computing(self) -> AbstractContextManager[object]:
        """See ``Forward``: torch's threads, spinning, would take the CPUs from the kernels' own."""
        return _one_torch_thread()

    def draft_pass(self, contexts: Sequence[DraftContext], cache: DraftCache) -> _NativeDraftPass:
        """See ``DraftForward``."""
        return _NativeDraftPass(self._decoder, contexts, cache)


class _NativeDraftPass:
    """See ``DraftPass``."""

    def __init__(self, decoder: NativeDecoder, contexts: Sequence[DraftContext], cache: DraftCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._contexts = {context.slot: context for context in contexts}

    def step(self, tokens: Mapping[int, int], step: int) -> Tensor:
        """See ``DraftPass``."""
        rows = [
            DraftRow(token, self._contexts[slot].length, self._contexts[slot].block_ids, slot)
            for slot, token in tokens.items()
        ]
        cache = self._cache
        return self._decoder.draft_step(rows, step, cache.keys, cache.values, cache.tail_keys, cache.tail_values)


@lru_cache(maxsize=1)
def shared_threads(count: int) -> Threads:
    """The kernels' threads of this process: drafter and verifier of one process take turns."""
    return Threads(count)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def native_layer(weights_format: str, parts: Parts, activations: str, bias: Tensor | None = None) -> LayerWeights:
    """A stored weight as the kernels take it."""
    if weights_format == "fp32-rows":
        weights_format, parts = "fp32", {"": parts["rows"]}
    return LayerWeights(weights_format, parts, activations, bias)


def _embedding(stored: StoredEmbedding) -> LayerWeights:
    if stored.format == "fp32":  # [H, V] beside a verifier on torch's operations: a copy of one's own
        return native_layer("fp32-rows", {"rows": CODECS["fp32"].decode(stored.parts).contiguous()}, "fp32")
    return native_layer(stored.format, stored.parts, "fp32")
