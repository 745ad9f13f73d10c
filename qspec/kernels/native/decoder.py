"""Whole decoder steps in C++: what ``qspec.models.decoder.Decoder`` computes, over the caller's cache.

Knows the architecture (``DecoderConfig``) and where keys and values lie, nothing of leases, batches or sampling. A step
is one parallel region (``decoder.cpp``). Verification and drafting are the same computation, so that with weights of
one format a draft step gives a token's row the very bits that verification gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.errors import ContractViolation, InvalidInput
from qspec.kernels.elementwise import rotary_table
from qspec.kernels.native.loading import choose_instruction_set, load
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights, native_matrix
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.models.decoder import linear_shapes

if TYPE_CHECKING:
    from qspec.kernels.native import _native

_ALL_IN_BLOCKS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Adjacent positions of one sequence: ``token_ids`` at ``start``, ``start + 1``, …

    ``block_ids``: the blocks of the sequence from position 0 on, those of the rows themselves included.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One sequence's token of a draft step; its position is ``context + step``."""

    token_id: int
    context: int
    """Committed positions, in ``block_ids``, that the tail follows."""
    block_ids: Sequence[int]
    slot: int
    """Whose tail it is."""


class NativeDecoder:
    """A decoder-only transformer. Used by one thread at a time; the interpreter's lock is released in calls.

    ``tensors``: norms and positions by canonical name (``qspec.models.config``), and ``embed`` ``[V, H]`` float32
    unless embeddings are tied; then a token's row is read from ``lm_head``'s weight, exactly as its codec decodes it.
    ``embedding``: another stored weight ``[V, H]`` that it is read from instead (a drafter's ``lm_head`` is coarser).
    ``layers``: the linear layers by canonical name. All tensors are read where they are and kept alive.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, Tensor],
        layers: Mapping[str, LayerWeights],
        max_positions: int,
        threads: Threads,
        *,
        embedding: LayerWeights | None = None,
        instruction_set: str | None = None,
    ) -> None:
        load()
        from qspec.kernels.native import _native

        self.config, self.threads = config, threads
        self._kept: list[object] = [threads, *layers.values()]
        learned = config.positions is Positions.LEARNED
        if config.head_dim % 2 and not learned:
            raise InvalidInput.field("model", "rotary positions need an even head dimension")
        if learned and max_positions > config.max_position:
            raise ContractViolation(f"there are {config.max_position} learned positions, not {max_positions}")
        cos, sin = (None, None) if learned else rotary_table(config, max_positions)
        hidden, head_dim = config.hidden_size, config.head_dim
        shapes = linear_shapes(config)

        def address(tensor: Tensor | None, *shape: int) -> int:
            if tensor is None:
                return 0
            tensor = tensor.float().contiguous()
            if tuple(tensor.shape) != shape:
                raise ContractViolation(f"a tensor of the decoder is {tuple(tensor.shape)}, not {shape}")
            self._kept.append(tensor)
            return tensor.data_ptr()

        def norm(name: str) -> _native.Norm:
            bias = tensors[name + ".bias"] if config.norm is Norm.LAYER else None
            return _native.Norm(address(tensors[name], hidden), address(bias, hidden))

        def matrix(name: str) -> _native.Matrix:
            return native_matrix(layers[name], name, shapes[name])

        def layer(prefix: str) -> _native.Layer:
            q_norm, k_norm = (tensors[prefix + name] if config.qk_norm else None for name in ("q_norm", "k_norm"))
            return _native.Layer(
                **{name: matrix(prefix + name) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")},
                attention_norm=norm(prefix + "attention_norm"),
                mlp_norm=norm(prefix + "mlp_norm"),
                q_norm=address(q_norm, head_dim),
                k_norm=address(k_norm, head_dim),
            )

        lm_head = matrix("lm_head")
        if embedding is None and not (config.tied_embeddings and "embed" not in tensors):
            embedding = LayerWeights("fp32", {"": tensors["embed"]})
        self._kept.append(embedding)
        self._native = _native.Decoder(
            instruction_set=choose_instruction_set(instruction_set),
            pool=threads.pool,
            vocab=config.vocab_size,
            hidden=hidden,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=head_dim,
            intermediate=config.intermediate_size,
            max_positions=max_positions,
            norm_eps=config.norm_eps,
            gated=config.gated_mlp,
            gelu=config.activation is Activation.GELU_TANH,
            embedding=lm_head if embedding is None else native_matrix(embedding, "embed", (config.vocab_size, hidden)),
            lm_head=lm_head,
            position_embed=address(tensors["position_embed"], config.max_position, hidden) if learned else 0,
            cos=address(cos, max_positions, head_dim),
            sin=address(sin, max_positions, head_dim),
            final_norm=norm("final_norm"),
            layers=[layer(f"layers.{index}.") for index in range(config.num_layers)],
        )
        self._cache, self._make_span = _native.Cache(), _native.Span
        self._blocks: tuple[Tensor, Tensor] | None = None
        self._tails: tuple[Tensor, Tensor] | None = None

    def verify_rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """Run some rows of each sequence, entering them into its blocks: ``[rows, H]`` before the final norm.

        ``keys``, ``values``: ``[layers, blocks, kv_heads, block, D]`` float32. ``ValueError`` where a token, a position
        or a block does not exist.
        """
        self._use_blocks(keys, values)
        tokens: list[int] = []
        spans = []
        for rows in sequences:
            first, count = len(tokens), len(rows.token_ids)
            spans.append(self._make_span(first, count, rows.start, _ALL_IN_BLOCKS, 0, rows.block_ids))
            tokens.extend(rows.token_ids)
        return self._hidden(tokens, spans)

    def draft_step(
        self, rows: Sequence[DraftRow], step: int, keys: Tensor, values: Tensor, tail_keys: Tensor, tail_values: Tensor
    ) -> Tensor:
        """Run one row of each sequence, at ``context + step``, entering it into its tail: ``[rows, H]``.

        ``keys``, ``values`` as in ``verify_rows``, only read; ``tail_keys``, ``tail_values``:
        ``[layers, slots, kv_heads, k_max, D]`` float32, holding the steps before this one.
        """
        self._use_blocks(keys, values)
        self._use_tails(tail_keys, tail_values)
        spans = [
            self._make_span(index, 1, row.context + step, row.context, row.slot, row.block_ids)
            for index, row in enumerate(rows)
        ]
        return self._hidden([row.token_id for row in rows], spans)

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]`` float32, written to ``out`` if given."""
        rows = self._checked_rows(hidden)
        if out is None:
            out = torch.empty(rows, self.config.vocab_size)
        elif out.dtype is not torch.float32 or out.shape != (rows, self.config.vocab_size) or not out.is_contiguous():
            raise ContractViolation(f"out is not contiguous float32 [{rows}, {self.config.vocab_size}]")
        hidden = hidden.contiguous()
        self._native.logits(hidden.data_ptr(), rows, out.data_ptr())
        return out

    def greedy(self, hidden: Tensor) -> list[int]:
        """The token of each row's largest logit, the lowest of equals, without storing the logits. ``[rows, H]``.

        As ``torch.argmax``: where a logit is NaN, the first of those.
        """
        rows = self._checked_rows(hidden)
        hidden = hidden.contiguous()
        return self._native.greedy(hidden.data_ptr(), rows)

    def _hidden(self, tokens: list[int], spans: list[_native.Span]) -> Tensor:
        out = torch.empty(len(tokens), self.config.hidden_size)
        self._native.hidden(tokens, spans, self._cache, out.data_ptr())
        return out

    def _checked_rows(self, hidden: Tensor) -> int:
        if hidden.dtype is not torch.float32 or hidden.dim() != 2 or hidden.shape[1] != self.config.hidden_size:
            raise ContractViolation(f"hidden is not float32 [rows, {self.config.hidden_size}]")
        return hidden.shape[0]

    def _use_blocks(self, keys: Tensor, values: Tensor) -> None:
        if self._blocks is not None and self._blocks[0] is keys and self._blocks[1] is values:
            return
        layer_stride, block_stride, head_stride = self._checked_cache(keys, values)
        self._cache.set_blocks(
            keys=keys.data_ptr(), values=values.data_ptr(), layer_stride=layer_stride, block_stride=block_stride,
            head_stride=head_stride, blocks=keys.shape[1], block_size=keys.shape[3],
        )
        self._blocks = (keys, values)

    def _use_tails(self, keys: Tensor, values: Tensor) -> None:
        if self._tails is not None and self._tails[0] is keys and self._tails[1] is values:
            return
        layer_stride, slot_stride, head_stride = self._checked_cache(keys, values)
        self._cache.set_tail(
            keys=keys.data_ptr(), values=values.data_ptr(), layer_stride=layer_stride, slot_stride=slot_stride,
            head_stride=head_stride, slots=keys.shape[1], size=keys.shape[3],
        )
        self._tails = (keys, values)

    def _checked_cache(self, keys: Tensor, values: Tensor) -> tuple[int, int, int]:
        """Strides of layers, blocks or slots, and heads."""
        config = self.config
        for cache in (keys, values):
            fits = cache.dim() == 5 and (cache.shape[0], cache.shape[2], cache.shape[4]) == (
                config.num_layers, config.num_kv_heads, config.head_dim
            )
            if not fits or cache.dtype is not torch.float32 or cache.device.type != "cpu":
                raise ContractViolation(f"a cache is {cache.dtype} {tuple(cache.shape)}, not that of the decoder")
            if cache.stride()[3:] != (config.head_dim, 1):
                raise ContractViolation("a cache's heads are not contiguous")
        if keys.shape != values.shape or keys.stride() != values.stride():
            raise ContractViolation("keys and values lie in different shapes")
        strides = keys.stride()
        return strides[0], strides[1], strides[2]
