"""The one decoder that all families run.

It knows the architecture (``DecoderConfig``) and nothing else: how a linear layer multiplies and how attention finds
its keys are passed in, so that verifier and drafter run this same code with other kernels and other caches, and read
norms and embeddings from the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from qspec.kernels.elementwise import layer_norm, mlp_middle, rms_norm, rotary_table, rotate
from qspec.models.config import DecoderConfig, Norm, Positions

Rotary = tuple[Tensor, Tensor]
"""cos and sin of some rows' positions, ``[rows, 1, D]`` each (``qspec.kernels.elementwise.rotate``)."""


class Linear(Protocol):
    """A linear layer, bias included: ``[rows, in] -> [rows, out]``, float32, a new tensor each time."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        ...


class Attention(Protocol):
    """Attention over whatever cache the caller keeps."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store ``k``, ``v`` ``[rows, kv_heads, D]`` and attend ``q`` ``[rows, heads, D]``: ``[rows, heads·D]``."""
        ...


def linear_names(config: DecoderConfig) -> list[str]:
    """Canonical names of all linear layers, in the order of their use."""
    per_layer = ("qkv", "attention_out", "mlp_in", "mlp_out")
    return [f"layers.{i}.{name}" for i in range(config.num_layers) for name in per_layer] + ["lm_head"]


def linear_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """``(out, in)`` of every linear layer, by canonical name, in the order of their use."""
    heads, hidden = config.num_heads * config.head_dim, config.hidden_size
    shapes = {
        "qkv": (heads + 2 * config.num_kv_heads * config.head_dim, hidden),
        "attention_out": (hidden, heads),
        "mlp_in": (config.intermediate_size * (2 if config.gated_mlp else 1), hidden),
        "mlp_out": (hidden, config.intermediate_size),
        "lm_head": (config.vocab_size, hidden),
    }
    return {name: shapes[name.rpartition(".")[2]] for name in linear_names(config)}


class Decoder:
    """A decoder-only transformer over given kernels.

    ``tensors``: norms, embeddings (if tied, ``embed`` or ``lm_head``) and positions by canonical name
    (``qspec.models.config``); ``linears``: one per name of ``linear_names``. Positions beyond ``max_positions`` are the
    caller's error. Without ``row_invariant`` (drafting) the library's own activation functions are used, which are
    faster.
    """

    def __init__(
        self,
        config: DecoderConfig,
        tensors: Mapping[str, Tensor],
        linears: Mapping[str, Linear],
        max_positions: int,
        *,
        row_invariant: bool = True,
    ) -> None:
        self.config = config
        self._activate = mlp_middle(config.activation, gated=config.gated_mlp, row_invariant=row_invariant)
        self._embed = tensors["embed"] if "embed" in tensors else tensors["lm_head"].t()  # [V, H]
        self._position_embed = tensors.get("position_embed")
        if config.positions is Positions.ROTARY:
            self._cos, self._sin = (table.unsqueeze(1) for table in rotary_table(config, max_positions))
        self._layers = [_layer(config, tensors, linears, f"layers.{index}.") for index in range(config.num_layers)]
        self._final_norm = _norm(config, tensors, "final_norm")
        self._lm_head = linears["lm_head"]

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """The last layer's output, before the final norm. ``token_ids``, ``positions``: ``[rows]``; ``[rows, H]``."""
        x, rotary = self.embed(token_ids, positions)
        for index in range(len(self._layers)):
            x = self.mlp_block(index, self.attention_block(index, x, rotary, attend))
        return x

    def embed(self, token_ids: Tensor, positions: Tensor) -> tuple[Tensor, Rotary | None]:
        """What the first layer reads, ``[rows, H]``, and what rotates queries and keys in all layers (or None)."""
        x = self._embed.index_select(0, token_ids)
        if self.config.positions is Positions.ROTARY:
            return x, (self._cos.index_select(0, positions), self._sin.index_select(0, positions))
        if self._position_embed is not None:
            x = x + self._position_embed.index_select(0, positions)
        return x, None

    def attention_block(self, index: int, x: Tensor, rotary: Rotary | None, attend: Attention) -> Tensor:
        """The first half of layer ``index``, residual included: ``[rows, H] -> [rows, H]``, a new tensor."""
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        layer = self._layers[index]
        qkv = layer.qkv(layer.attention_norm(x)).view(-1, heads + 2 * kv_heads, head_dim)
        qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if layer.qk_norm is not None:
            qk = layer.qk_norm(qk)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        return layer.attention_out(attend(index, qk[:, :heads], qk[:, heads:], v)).add_(x)

    def mlp_block(self, index: int, x: Tensor) -> Tensor:
        """The second half of layer ``index``, residual included: ``[rows, H] -> [rows, H]``, a new tensor."""
        layer = self._layers[index]
        return layer.mlp_out(self._activate(layer.mlp_in(layer.mlp_norm(x)))).add_(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]``."""
        return self._lm_head(self.head_input(hidden))

    def head_input(self, hidden: Tensor) -> Tensor:
        """What ``lm_head`` reads: ``[rows, H] -> [rows, H]``."""
        return self._final_norm(hidden)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's operations, ready to be called."""

    attention_norm: Callable[[Tensor], Tensor]
    qkv: Linear
    qk_norm: Callable[[Tensor], Tensor] | None
    attention_out: Linear
    mlp_norm: Callable[[Tensor], Tensor]
    mlp_in: Linear
    mlp_out: Linear


def _layer(config: DecoderConfig, tensors: Mapping[str, Tensor], linears: Mapping[str, Linear], prefix: str) -> _Layer:
    qk_norm = None
    if config.qk_norm:
        q, k = tensors[prefix + "q_norm"], tensors[prefix + "k_norm"]
        weight = torch.cat([q.expand(config.num_heads, -1), k.expand(config.num_kv_heads, -1)])
        qk_norm = partial(rms_norm, weight=weight, eps=config.norm_eps)  # over [rows, heads + kv_heads, D]
    return _Layer(
        attention_norm=_norm(config, tensors, prefix + "attention_norm"),
        qkv=linears[prefix + "qkv"],
        qk_norm=qk_norm,
        attention_out=linears[prefix + "attention_out"],
        mlp_norm=_norm(config, tensors, prefix + "mlp_norm"),
        mlp_in=linears[prefix + "mlp_in"],
        mlp_out=linears[prefix + "mlp_out"],
    )


def _norm(config: DecoderConfig, tensors: Mapping[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    if config.norm is Norm.RMS:
        return partial(rms_norm, weight=tensors[name], eps=config.norm_eps)
    return partial(layer_norm, weight=tensors[name], bias=tensors[name + ".bias"], eps=config.norm_eps)
