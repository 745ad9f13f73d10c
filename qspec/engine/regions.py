"""The named regions of an arena: what both workers agree on."""

from __future__ import annotations

import hashlib

import torch

from qspec.config import StackConfig
from qspec.interfaces import MemoryItem, Region, RegionWriter
from qspec.memory.layout import RegionSpec
from qspec.models.config import DecoderConfig

KV_KEYS, KV_VALUES = "kv/keys", "kv/values"
"""``[layers, blocks, kv_heads, block, D]``: committed entries, written by the verifier alone."""
TAIL_KEYS, TAIL_VALUES = "tail/keys", "tail/values"
"""``[layers, slots, kv_heads, k_max, D]``: the drafter's own entries of the current round."""
SLOT_LEASES = "state/leases"
"""``[slots]`` int64: the tenancy of each slot; 0 means that nobody has it."""
SLOT_CACHED = "state/cached_lengths"
"""``[slots]`` int64: valid cached positions."""
SLOT_TOKENS = "state/tokens"
"""``[slots, max_model_len]`` int32: the tokens at the cached positions, for what depends on a sequence's history."""
SLOT_PENDING, SLOT_ROUNDS = "state/pending_tokens", "state/decided_rounds"
"""``[slots]`` int32: the token behind the cached positions, as of the round ``[slots]`` int64 that decided on it."""
DECIDED_ROUND, DECIDED_BELL = "state/last_round", "state/bell"
"""``[1]`` int64: the verifier's last round; ``[1]`` int32: changes with it (``qspec.engine.decision_handover``)."""
SLOT_PROMPTS = "state/prompt_lengths"
"""``[slots]`` int64: leading tokens that were not generated."""
BLOCK_TABLES = "state/block_tables"
"""``[slots, blocks per sequence]`` int64: block ids, -1 where there is none."""
DRAFT_PROBS = "draft/probs"
"""``[slots, k_max, vocab]`` float32: distributions of the round's drafts, where the rejection rule needs them."""
DRAFT_ROUNDS = "draft/rounds"
"""``[slots]`` int64: the round that the distributions are of; 0 while they are being written."""
DRAFT_TOKENS, DRAFT_COUNTS, DRAFT_LEASES = "draft/tokens", "draft/counts", "draft/leases"
"""``[slots, k_max]`` int32, ``[slots]`` and ``[slots]`` int64: drafts for a verifier that awaits them, how many, and
whose they are (``qspec.engine.draft_handover``),"""
DRAFT_HANDED, DRAFT_BELL = "draft/handed", "draft/bell"
"""``[1]`` int64: the round that they are of; ``[1]`` int32: changes whenever there are others."""


def arena_specs(
    model: DecoderConfig, config: StackConfig, max_model_len: int, cache_dtype: torch.dtype = torch.float32
) -> list[RegionSpec]:
    """All regions of a stack but those of the weights (``qspec.engine.weights``)."""
    num_blocks = config.kv_tokens // config.block_size
    cache = (model.num_layers, num_blocks, model.num_kv_heads, config.block_size, model.head_dim)
    slots, drafts = config.max_slots, max(config.max_draft_length, 1)
    tail = (model.num_layers, slots, model.num_kv_heads, drafts, model.head_dim)
    own = RegionWriter.DRAFTER
    return [
        RegionSpec(KV_KEYS, cache_dtype, cache),
        RegionSpec(KV_VALUES, cache_dtype, cache),
        RegionSpec(SLOT_LEASES, torch.int64, (slots,)),
        RegionSpec(SLOT_CACHED, torch.int64, (slots,)),
        RegionSpec(SLOT_TOKENS, torch.int32, (slots, max_model_len)),
        RegionSpec(SLOT_PROMPTS, torch.int64, (slots,)),
        RegionSpec(SLOT_PENDING, torch.int32, (slots,)),
        RegionSpec(SLOT_ROUNDS, torch.int64, (slots,)),
        RegionSpec(DECIDED_ROUND, torch.int64, (1,)),
        RegionSpec(DECIDED_BELL, torch.int32, (1,)),
        RegionSpec(BLOCK_TABLES, torch.int64, (slots, -(-max_model_len // config.block_size))),
        RegionSpec(TAIL_KEYS, cache_dtype, tail, own),
        RegionSpec(TAIL_VALUES, cache_dtype, tail, own),
        RegionSpec(DRAFT_PROBS, torch.float32, (slots, drafts, model.vocab_size), own),
        RegionSpec(DRAFT_ROUNDS, torch.int64, (slots,), own),
        RegionSpec(DRAFT_TOKENS, torch.int32, (slots, drafts), own),
        RegionSpec(DRAFT_COUNTS, torch.int64, (slots,), own),
        RegionSpec(DRAFT_LEASES, torch.int64, (slots,), own),
        RegionSpec(DRAFT_HANDED, torch.int64, (1,), own),
        RegionSpec(DRAFT_BELL, torch.int32, (1,), own),
    ]


def arena_memory(specs: list[RegionSpec]) -> tuple[MemoryItem, ...]:
    """The part of the arena's own memory in the budget."""
    cache = next(spec.dtype for spec in specs if spec.name == KV_KEYS)
    purposes = {
        "kv/": f"KV blocks fp{cache.itemsize * 8}",
        "tail/": "drafter's tails",
        "draft/": "draft distributions",
        "state/": "batch state",
    }
    return tuple(
        MemoryItem(name=name, bytes=sum(spec.bytes for spec in specs if spec.name.startswith(prefix)), shared=True)
        for prefix, name in purposes.items()
    )


def arena_fingerprint(model_fingerprint: str, regions: tuple[Region, ...]) -> str:
    """Hash over the model and everything about the regions; both workers compute it and must agree."""
    digest = hashlib.sha256(model_fingerprint.encode())
    for region in regions:
        place = f"{region.file}|{region.offset}"
        digest.update(f"{region.name}|{region.dtype}|{region.shape}|{place}|{region.writer.value}\n".encode())
    return digest.hexdigest()
