"""The decoder on a GPU: the launches of a pass over weights in the arena, in the order of ``qspec.models.decoder``.

The residual stream is fp32; what products read is fp16 or, where a method says so, quantised with a scale per token
(``cuda_linear``). Between two products lies one kernel, which adds up the pieces of the first and writes what the
second reads (``qspec.kernels.triton.elementwise``). Every kernel of a verifier is row-invariant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.engine.cuda_buffers import PassBuffers, PassLimits
from qspec.engine.cuda_linear import CudaLinear, plane_weight
from qspec.engine.gpu_support import check_biases
from qspec.engine.pass_inputs import PassInputs
from qspec.engine.weights import StoredEmbedding
from qspec.kernels.elementwise import rotary_table
from qspec.kernels.triton.attention import Context, Rows, attend
from qspec.kernels.triton.elementwise import (
    Activations,
    HeadInputs,
    Pieces,
    RowPlaces,
    rms_norm,
    rotate_and_store,
    silu_times_up,
)
from qspec.kernels.triton.embedding import embed
from qspec.kernels.triton.plane_linear import PlaneWeight
from qspec.memory.device_usage import free_bytes
from qspec.models.config import DecoderConfig
from qspec.quant.codecs import Parts
from qspec.quant.method_plan import MethodPlan


@dataclass(frozen=True, slots=True)
class PassCache:
    """All layers' keys and values: fp16 ``[layers, blocks, kv_heads, block, D]``, and tails in a draft step."""

    keys: Tensor
    values: Tensor
    tail_keys: Tensor | None = None
    """``[layers, slots, kv_heads, k_max, D]``."""
    tail_values: Tensor | None = None

    @property
    def place(self) -> tuple[int, int, torch.Size]:
        """Tells it from every other cache, for graphs that were captured over it."""
        return self.keys.data_ptr(), self.values.data_ptr(), self.keys.shape


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: CudaLinear
    attention_out: CudaLinear
    mlp_in: CudaLinear
    mlp_out: CudaLinear
    heads: HeadInputs


class CudaDecoder:
    """A decoder over stored weights; ``parts``, ``tensors`` and ``embedding`` as ``worker_forward`` has them.

    ``InvalidInput`` for biases that no kernel adds.
    """

    def __init__(
        self, config: DecoderConfig, plan: MethodPlan, parts: Mapping[str, Parts], tensors: Mapping[str, Tensor],
        embedding: StoredEmbedding, limits: PassLimits,
    ) -> None:
        self.config, self.limits = config, limits
        self.device = next(iter(tensors.values())).device
        self.free_before = free_bytes(self.device)
        """Bytes of the device that were free before anything of a forward was there."""
        check_biases(tensors)
        linears = {
            name: CudaLinear.of(plan.layers[name], name, stored, _inputs(config, name))
            for name, stored in parts.items()
        }
        shapes = {name: linear.shape[::-1] for name, linear in linears.items()}
        self.buffers = PassBuffers(config, limits, shapes, self.device)
        self._embedding = _embedding(embedding, config.hidden_size)
        cos, sin = (table.to(self.device) for table in rotary_table(config, limits.positions))
        self._layers = [
            self._layer(tensors, linears, f"layers.{index}.", cos, sin) for index in range(config.num_layers)]
        self._final_norm, self._lm_head = tensors["final_norm"], linears["lm_head"]

    def hidden(self, inputs: PassInputs, cache: PassCache, pieces: int) -> Tensor:
        """Launch all layers: the residual stream ``[M, H]``, which the next pass writes over.

        Keys and values go to the blocks, or where ``cache`` has tails, to those. ``pieces``: of the longest context.
        """
        residual = self.buffers.rows("residual", inputs.rows)
        embed(inputs.token_ids, self._embedding, residual)
        drafting = cache.tail_keys is not None
        committed = inputs.committed if drafting else None
        places = RowPlaces(inputs.positions, inputs.slots, inputs.block_table, committed)
        rows = Rows(inputs.positions, inputs.slots, inputs.tiles, committed)
        added: Pieces | None = None
        for index, layer in enumerate(self._layers):
            keys, values = cache.keys[index], cache.values[index]
            tail_keys = None if cache.tail_keys is None else cache.tail_keys[index]
            tail_values = None if cache.tail_values is None else cache.tail_values[index]
            qkv = layer.qkv.product(self._normed(residual, added, layer.attention_norm, layer.qkv), self.buffers)
            queries = self.buffers.queries(inputs.rows)
            rotate_and_store(
                qkv, layer.heads, places, queries,
                keys if tail_keys is None else tail_keys, values if tail_values is None else tail_values)
            attended = self.buffers.rows("attended", inputs.rows)
            attend(
                queries, Context(keys, values, inputs.block_table, tail_keys, tail_values), rows,
                self.buffers.workspace, attended, pieces=pieces)
            added = layer.attention_out.product(Activations(attended, None), self.buffers)
            up = layer.mlp_in.product(self._normed(residual, added, layer.mlp_norm, layer.mlp_in), self.buffers)
            middle = self.buffers.activations("middle", inputs.rows, layer.mlp_out.form(inputs.rows))
            silu_times_up(up, middle)
            added = layer.mlp_out.product(middle, self.buffers)
        self._normed(residual, added, self._final_norm, self._lm_head)
        return residual

    def head(self, rows: int, hidden: Tensor | None = None) -> Pieces:
        """``lm_head`` over the last pass's ``rows`` rows, or over the ``hidden`` rows ``[rows, H]`` of a buffer."""
        normed = self.buffers.activations("normed", rows, self._lm_head.form(rows))
        if hidden is not None:
            rms_norm(hidden, None, self._final_norm, self.config.norm_eps, normed)
        return self._lm_head.product(normed, self.buffers)

    def _normed(self, residual: Tensor, added: Pieces | None, weight: Tensor, into: CudaLinear) -> Activations:
        rows = residual.shape[0]
        normed = self.buffers.activations("normed", rows, into.form(rows))
        rms_norm(residual, added, weight, self.config.norm_eps, normed)
        return normed

    def _layer(
        self, tensors: Mapping[str, Tensor], linears: Mapping[str, CudaLinear], prefix: str, cos: Tensor, sin: Tensor
    ) -> _Layer:
        config, norms = self.config, None
        if config.qk_norm:
            q, k = tensors[prefix + "q_norm"], tensors[prefix + "k_norm"]
            norms = torch.cat([q.repeat(config.num_heads), k.repeat(config.num_kv_heads)])
        heads = HeadInputs(
            heads=config.num_heads, kv_heads=config.num_kv_heads, cos=cos, sin=sin,
            bias=tensors.get(prefix + "qkv.bias"), norms=norms, eps=config.norm_eps)
        return _Layer(
            tensors[prefix + "attention_norm"], tensors[prefix + "mlp_norm"], linears[prefix + "qkv"],
            linears[prefix + "attention_out"], linears[prefix + "mlp_in"], linears[prefix + "mlp_out"], heads)


def _inputs(config: DecoderConfig, name: str) -> int:
    """How many inputs a linear layer has; its rows in the arena may be longer."""
    kind = name.rpartition(".")[2]
    if kind == "attention_out":
        return config.num_heads * config.head_dim
    return config.intermediate_size if kind == "mlp_out" else config.hidden_size


def _embedding(stored: StoredEmbedding, width: int) -> PlaneWeight | Tensor:
    return stored.parts["rows"] if stored.format == "fp32-rows" else plane_weight(stored.parts, width)
