"""What a model takes in fp16 with its KV blocks: the arena is held against that."""

from __future__ import annotations

from qspec.config import StackConfig
from qspec.models.config import DecoderConfig
from qspec.models.decoder import linear_shapes

_HALF = 2


def fp16_bytes(model: DecoderConfig, stack: StackConfig) -> int:
    """Every parameter once in fp16 (a tied embedding is ``lm_head``), and the blocks of the KV cache in fp16."""
    linears = sum(outputs * inputs for outputs, inputs in linear_shapes(model).values())
    embedding = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
    norms = (2 * model.num_layers + 1) * model.hidden_size
    entries = stack.kv_tokens // stack.block_size * stack.block_size
    kv = 2 * model.num_layers * entries * model.num_kv_heads * model.head_dim
    return _HALF * (linears + embedding + norms + kv)
