"""The drafter: reads the verifier's arena and proposes tokens.

It has no state of its own between batches. Each step feeds one token per sequence; attention reads the committed blocks
in place and then the tail, the only part of the cache that the drafter writes. Its weights are, layer by layer, the
arena's where the verifier's format is its own or holds it as a plane; else a private copy. ``w8a8`` always keeps a
private packed copy (fbgemm's layout cannot be shared).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.acceptance import draft_token
from qspec.config import StackConfig
from qspec.early_stop import DraftGate
from qspec.engine.linears import (
    drafter_linears,
    is_packed,
    is_plain,
    kernel_name,
    packed_linears,
    packed_name,
    working_memory,
)
from qspec.engine.regions import (
    BLOCK_TABLES,
    DRAFT_PROBS,
    DRAFT_ROUNDS,
    KV_KEYS,
    KV_VALUES,
    SLOT_CACHED,
    SLOT_LEASES,
    TAIL_KEYS,
    TAIL_VALUES,
    arena_fingerprint,
)
from qspec.engine.weights import fp32_tensors, parts_bytes, private_parts, shared_parts
from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    DraftResult,
    MemoryItem,
    Progress,
    StageTimings,
    VerifierDescription,
)
from qspec.kernels.int8_linear import Int8Linear
from qspec.kernels.paged_attention import BlockSpan, attend_with_tail, causal_mask
from qspec.memory.arena import HostArena
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import Decoder, Linear, linear_names
from qspec.models.tokenizer import Tokenizer
from qspec.quant.codecs import Parts
from qspec.quant.method_plan import MethodPlan, check_methods, plan_draft, plan_verify
from qspec.quant.methods import NO_DRAFTER, Backend, Role
from qspec.sampling import confidence


@dataclass(slots=True)
class _Draft:
    """One sequence while it is being drafted for."""

    item: DraftItem
    context: int
    """Committed positions that the tail follows."""
    keys: list[Tensor]
    """Per layer, the blocks that hold the context: ``[blocks, kv_heads, block, D]``."""
    values: list[Tensor]
    mask: Tensor
    """Hides what lies behind the context in its last block."""
    tokens: list[int]
    gate: DraftGate


class _Attached:
    """An arena, and the decoder over it."""

    def __init__(self, arena: HostArena, decoder: Decoder, parts: Mapping[str, Parts]) -> None:
        self.arena, self.decoder = arena, decoder
        self.parts = parts  # the stored weights that the decoder multiplies with; none where they are packed
        self.keys, self.values = arena.tensor(KV_KEYS), arena.tensor(KV_VALUES)
        self.tail_keys, self.tail_values = arena.tensor(TAIL_KEYS), arena.tensor(TAIL_VALUES)
        self.leases, self.cached = arena.tensor(SLOT_LEASES), arena.tensor(SLOT_CACHED)
        self.block_tables = arena.tensor(BLOCK_TABLES)
        self.draft_probs, self.draft_rounds = arena.tensor(DRAFT_PROBS), arena.tensor(DRAFT_ROUNDS)


class LocalDrafter:
    """The drafter of one process (``qspec.interfaces.Drafter``). Made by ``load``; used by one thread."""

    def __init__(self, model: ConvertedModel, plan: MethodPlan, store: MethodPlan, progress: Progress) -> None:
        self._model, self._methods, self._store = model, plan, store
        self._vocab_fingerprint = Tokenizer.load(model.tokenizer_directory).vocab_fingerprint
        self._attached: _Attached | None = None
        packed = [name for name, choice in plan.layers.items() if is_packed(choice)]
        self._stored = [name for name in plan.layers if name not in packed]
        private = [name for name in self._stored if not plan.held_by(store, name)]
        self._packed: dict[str, Int8Linear] = {}
        if packed:
            with model.open_weights() as weights, model.open_int8() as int8:
                self._packed = packed_linears(packed, int8, weights, progress)
        self._private = private_parts(model, private, plan, progress)
        for name in dict.fromkeys(
            kernel_name(choice) for choice in map(plan.layers.__getitem__, self._stored) if not is_plain(choice)
        ):
            progress(name, None)
        self._memory = self._private_memory()

    @classmethod
    def load(cls, config: StackConfig, *, progress: Progress) -> LocalDrafter:
        """Convert the model if need be and prepare private weights; needs no arena yet. ``InvalidInput``."""
        for role in (Role.VERIFY, Role.DRAFT):
            check_methods(config, role, Backend.CPU)  # before a conversion that takes long
        if config.draft_quantization == NO_DRAFTER:
            raise InvalidInput.field("draft_quantization", "a drafter needs a method; 'off' means to start none")
        model = prepare(config.model, progress=progress)
        store = plan_verify(config, linear_names(model.config), Backend.CPU, stored=model.stored)
        return cls(model, plan_draft(config, Backend.CPU, verify=store, stored=model.stored), store, progress)

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """Map the verifier's arena; ``InvalidInput`` when it is of another model or vocabulary."""
        self.close()
        if verifier.vocab_fingerprint != self._vocab_fingerprint:
            raise InvalidInput.field("model", "drafter and verifier have different vocabularies; give both one model")
        if verifier.arena.fingerprint != arena_fingerprint(self._model.fingerprint, verifier.arena.regions):
            raise InvalidInput.field("model", "the arena holds another model or format than the drafter's")
        arena = HostArena.open(verifier.arena)
        tensors = fp32_tensors(arena)
        shared = [name for name in self._stored if name not in self._private]
        parts = {**self._private, **shared_parts(arena, shared, self._methods, self._store)}
        linears: dict[str, Linear] = {**self._packed, **drafter_linears(self._methods, parts, tensors)}
        positions = verifier.max_model_len + verifier.max_draft_length
        decoder = Decoder(self._model.config, tensors, linears, positions, row_invariant=False)
        self._attached = _Attached(arena, decoder, parts)
        return DrafterDescription(
            epoch=verifier.epoch, method=self._methods.label, kernel=self._kernel_name(), memory=self._memory
        )

    def detach(self, epoch: int) -> None:
        """Unmap the arena of ``epoch``; another one is left alone."""
        if self._attached is not None and self._attached.arena.descriptor.epoch == epoch:
            self._attached.arena.close()
            self._attached = None

    @property
    def decoder(self) -> Decoder:
        """The decoder over the attached arena's weights, with the kernels of the drafter's method."""
        if self._attached is None:
            raise ContractViolation("the drafter is not attached")
        return self._attached.decoder

    @torch.inference_mode()
    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """Draft for a batch of sequences, all at once, each as many tokens as it asks for."""
        started = time.perf_counter_ns()
        attached = self._attached
        if attached is None or attached.arena.descriptor.epoch != batch.epoch:
            raise EpochMismatch(f"the drafter is not attached to epoch {batch.epoch}")
        drafts = {item.slot: draft for item in batch.items if (draft := self._begin(attached, item)) is not None}
        prepared = time.perf_counter_ns()
        sampling_ns = 0
        for step in range(max((item.draft_length for item in batch.items), default=0)):
            active = [draft for draft in drafts.values() if draft.item.draft_length > step and not draft.gate.ended]
            if not active:
                break
            logits = self._step(attached, active, step)
            sampled = time.perf_counter_ns()
            for index, draft in enumerate(active):
                self._choose(attached, draft, logits[index : index + 1], step)
            sampling_ns += time.perf_counter_ns() - sampled
        for draft in drafts.values():
            if draft.item.sampling.needs_draft_probs:
                attached.draft_rounds[draft.item.slot] = batch.round
        results = tuple(
            DraftResult.answering(item, draft.tokens, draft.gate.confidences)
            if (draft := drafts.get(item.slot)) is not None else DraftResult.answering(item, None)
            for item in batch.items
        )
        done = time.perf_counter_ns()
        return DraftAnswer(
            epoch=batch.epoch,
            round=batch.round,
            results=results,
            timings=StageTimings(
                prepare_ns=prepared - started,
                forward_ns=done - prepared - sampling_ns,
                sample_ns=sampling_ns,
                total_ns=done - started,
            ),
        )

    def close(self) -> None:
        """Let go of the arena."""
        if self._attached is not None:
            self.detach(self._attached.arena.descriptor.epoch)

    def _begin(self, attached: _Attached, item: DraftItem) -> _Draft | None:
        """Find the sequence's blocks; None when the batch speaks of another tenancy or length than the arena."""
        if not 0 <= item.slot < len(attached.leases):
            raise ContractViolation(f"slot {item.slot} does not exist")
        if not 1 <= item.draft_length <= attached.tail_keys.shape[3]:
            raise ContractViolation(f"draft_length {item.draft_length} is not in 1..{attached.tail_keys.shape[3]}")
        if not 0 <= item.pending_token < self._model.config.vocab_size:
            raise ContractViolation("the pending token lies outside the vocabulary")
        context = item.committed_len - 1
        if int(attached.leases[item.slot]) != item.lease or int(attached.cached[item.slot]) != context:
            return None
        if item.sampling.needs_draft_probs:
            attached.draft_rounds[item.slot] = 0
        kv_heads, block_size = attached.keys.shape[2:4]
        heads = self._model.config.num_heads
        count = -(-context // block_size)
        span = BlockSpan(tuple(int(block) for block in attached.block_tables[item.slot, :count]))
        layers = range(attached.keys.shape[0])
        empty = attached.keys[0, :0]
        return _Draft(
            item=item,
            context=context,
            keys=[span.read(attached.keys[layer], count) if count else empty for layer in layers],
            values=[span.read(attached.values[layer], count) if count else empty for layer in layers],
            mask=causal_mask(torch.tensor([context - 1]), count, block_size, kv_heads, heads // kv_heads),
            tokens=[],
            gate=DraftGate(item.early_stop),
        )

    def _step(self, attached: _Attached, active: list[_Draft], step: int) -> Tensor:
        """Feed one token per sequence: ``[sequences, V]`` logits of the next."""
        tokens = torch.tensor([draft.tokens[-1] if draft.tokens else draft.item.pending_token for draft in active])
        positions = torch.tensor([draft.context + step for draft in active])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            rows = []
            for index, draft in enumerate(active):
                tail_keys = attached.tail_keys[layer, draft.item.slot]  # [kv_heads, k_max, D]
                tail_values = attached.tail_values[layer, draft.item.slot]
                tail_keys[:, step] = k[index]
                tail_values[:, step] = v[index]
                rows.append(attend_with_tail(
                    q[index], draft.keys[layer], draft.values[layer], draft.mask,
                    tail_keys[:, : step + 1], tail_values[:, : step + 1],
                ))
            return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

        return attached.decoder.logits(attached.decoder.hidden(tokens, positions, attend))

    def _choose(self, attached: _Attached, draft: _Draft, logits: Tensor, step: int) -> None:
        """Draw the token for the next position; leave its distribution in the arena where it is needed."""
        sampling = draft.item.sampling
        if draft.gate.rule is not None and not draft.gate.admits(confidence(logits, sampling)):
            return
        if sampling.greedy:
            draft.tokens.append(int(logits[0].argmax()))
            return
        token, probs = draft_token(logits, sampling, draft.context + 1 + step)
        if sampling.needs_draft_probs:
            attached.draft_probs[draft.item.slot, step] = probs[0]
        draft.tokens.append(token)

    def _kernel_name(self) -> str:
        """All kernels in the order of use, and whose weights they read."""
        return "; ".join(dict.fromkeys(map(self._layer_kernel, self._methods.layers)))

    def _layer_kernel(self, name: str) -> str:
        if name in self._packed:
            return packed_name()
        owner = "its own" if name in self._private else "the verifier's"
        return f"{kernel_name(self._methods.layers[name])}, {owner} weights"

    def _private_memory(self) -> tuple[MemoryItem, ...]:
        """What the drafter holds for itself: an item for each format, and room to work."""
        items = []
        if self._packed:
            size = sum(linear.bytes for linear in self._packed.values())
            items.append(MemoryItem(name="weights int8, packed", bytes=size, shared=False))
        by_format: dict[str, dict[str, Parts]] = {}
        for name, parts in self._private.items():
            by_format.setdefault(self._methods.weights(name), {})[name] = parts
        for weights, stored in by_format.items():
            items.append(MemoryItem(name=f"weights {weights}", bytes=parts_bytes(stored), shared=False))
        with self._model.open_weights() as tensors:
            shapes = {name: tensors.shape(name) for name in self._stored}
        return (*items, *working_memory(self._methods, shapes, self._stored))
