"""The one decoder that all families run.

It knows the architecture (``DecoderConfig``) and nothing else: how a linear layer multiplies and how attention finds
its keys are passed in, so that verifier and drafter run this same code with other kernels and other caches, and read
norms and embeddings from the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from qspec.kernels.elementwise import layer_norm, mlp_middle, rms_norm, rotary_table, rotate
from qspec.models.config import DecoderConfig, Norm, Positions


class Linear(Protocol):
    """A linear layer, bias included: ``[rows, in] -> [rows, out]``, float32."""

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


class Decoder:
    """A decoder-only transformer over given kernels.

    ``tensors``: norms, embeddings and positions by canonical name (``qspec.models.config``); ``linears``: one per
    name of ``linear_names``. Positions beyond ``max_positions`` are the caller's error. Without ``row_invariant``
    (drafting) the library's own activation functions are used, which are faster.
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
        self._tensors = tensors
        self._linears = linears
        self._embed = tensors["lm_head"].t() if config.tied_embeddings else tensors["embed"]  # [V, H]
        if config.positions is Positions.ROTARY:
            self._cos, self._sin = (table.unsqueeze(1) for table in rotary_table(config, max_positions))
        if config.qk_norm:
            self._qk_norms = [
                torch.cat([
                    tensors[f"layers.{layer}.q_norm"].expand(config.num_heads, -1),
                    tensors[f"layers.{layer}.k_norm"].expand(config.num_kv_heads, -1),
                ])
                for layer in range(config.num_layers)
            ]  # [heads + kv_heads, D] each

    def hidden(self, token_ids: Tensor, positions: Tensor, attend: Attention) -> Tensor:
        """The last layer's output, before the final norm. ``token_ids``, ``positions``: ``[rows]``; ``[rows, H]``."""
        config, linears, tensors = self.config, self._linears, self._tensors
        heads, kv_heads = config.num_heads, config.num_kv_heads
        x = self._embed.index_select(0, token_ids)
        if config.positions is Positions.ROTARY:
            cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        else:
            x = x + tensors["position_embed"].index_select(0, positions)
        for layer in range(config.num_layers):
            prefix = f"layers.{layer}."
            qkv = linears[prefix + "qkv"](self._norm(x, prefix + "attention_norm"))
            qkv = qkv.view(-1, heads + 2 * kv_heads, config.head_dim)
            qk, v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
            if config.qk_norm:
                qk = rms_norm(qk, self._qk_norms[layer], config.norm_eps)
            if config.positions is Positions.ROTARY:
                qk = rotate(qk, cos, sin)
            x = x + linears[prefix + "attention_out"](attend(layer, qk[:, :heads], qk[:, heads:], v))
            inner = linears[prefix + "mlp_in"](self._norm(x, prefix + "mlp_norm"))
            x = x + linears[prefix + "mlp_out"](self._activate(inner))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and ``lm_head``: ``[rows, H] -> [rows, V]``."""
        return self._linears["lm_head"](self._norm(hidden, "final_norm"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.norm is Norm.RMS:
            return rms_norm(x, self._tensors[name], self.config.norm_eps)
        return layer_norm(x, self._tensors[name], self._tensors[name + ".bias"], self.config.norm_eps)
