"""What a decoder looks like: one frozen record for all families, written into the converted model.

Canonical tensor names (``weights.safetensors`` of a converted model; H hidden, D head dim, V vocabulary,
I intermediate; linear weights are ``[in, out]``, contiguous, which is what the row-invariant CPU product reads):

====================================  =====================================================================
``embed``                             ``[V, H]``; absent when ``tied_embeddings`` (then it is ``lm_head`` transposed)
``position_embed``                    ``[P, H]``; learned positions only
``layers.{i}.attention_norm``         ``[H]`` (and ``.bias`` for LayerNorm), before attention
``layers.{i}.qkv``                    ``[H, (heads + 2·kv_heads)·D]``: queries, keys, values (and ``.bias``)
``layers.{i}.q_norm``, ``.k_norm``    ``[D]``; only with ``qk_norm``
``layers.{i}.attention_out``          ``[heads·D, H]`` (and ``.bias``)
``layers.{i}.mlp_norm``               ``[H]`` (and ``.bias``), before the MLP
``layers.{i}.mlp_in``                 gated: ``[H, 2·I]``, gate then up; plain: ``[H, I]`` (and ``.bias``)
``layers.{i}.mlp_out``                ``[I, H]`` (and ``.bias``)
``final_norm``                        ``[H]`` (and ``.bias``)
``lm_head``                           ``[H, V]``
====================================  =====================================================================

A bias of linear ``x`` is named ``x.bias`` and is present exactly when the family has it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Norm(Enum):
    """Normalisation of the residual stream."""

    RMS = "rms"
    LAYER = "layer"


class Activation(Enum):
    """The MLP's non-linearity."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class Positions(Enum):
    """How positions enter."""

    ROTARY = "rotary"
    LEARNED = "learned"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling (transformers ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Architecture of a decoder-only transformer."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    norm: Norm
    norm_eps: float
    activation: Activation
    gated_mlp: bool
    positions: Positions
    rope_theta: float
    rope_scaling: RopeScaling | None
    qk_norm: bool
    tied_embeddings: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary; ``from_json`` is its inverse."""
        record = asdict(self)
        record.update(norm=self.norm.value, activation=self.activation.value, positions=self.positions.value)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DecoderConfig:
        """The inverse of ``to_json``; unknown keys raise ``TypeError``."""
        scaling = record["rope_scaling"]
        return cls(**{
            **record,
            "norm": Norm(record["norm"]),
            "activation": Activation(record["activation"]),
            "positions": Positions(record["positions"]),
            "rope_scaling": RopeScaling(**scaling) if scaling else None,
        })
