"""The drafter: reads the verifier's arena and proposes tokens.

It has no state of its own between batches. Each step feeds one token per sequence; attention reads the committed blocks
in place and then the tail, the only part of the cache that the drafter writes. Its weights are, layer by layer, the
arena's where the verifier's format is its own or holds it as a plane; else its own, in a file that is mapped as well.
On torch's operations ``w8a8`` always keeps a private packed copy (fbgemm's layout cannot be shared).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qspec.acceptance import draft_token
from qspec.config import StackConfig
from qspec.early_stop import DraftGate
from qspec.engine.backend import check_kernels, choose_backend, tell_fallback
from qspec.engine.forward import DraftCache, DraftContext, DraftForward
from qspec.engine.linears import is_packed, is_plain, kernel_name, packed_linears, packed_name, working_memory
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
from qspec.engine.weight_files import open_weights
from qspec.engine.weights import layer_regions, parts_bytes, private_embedding_bytes, shared_parts
from qspec.engine.worker_forward import drafter_forward
from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    MemoryItem,
    Progress,
    StageTimings,
    VerifierDescription,
)
from qspec.kernels.int8_linear import Int8Linear
from qspec.memory.arena import HostArena
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.models.tokenizer import vocab_fingerprint
from qspec.quant.codecs import Parts
from qspec.quant.method_plan import MethodPlan, check_methods, plan_draft, plan_verify
from qspec.quant.methods import NO_DRAFTER, Backend, Role
from qspec.sampling import confidence
from qspec.threads import native_threads


@dataclass(slots=True)
class _Draft:
    """One sequence while it is being drafted for."""

    item: DraftItem
    context: DraftContext
    gate: DraftGate
    tokens: list[int] = field(default_factory=list)

    @property
    def needs_distributions(self) -> bool:
        """Whether more is asked about than the most probable token."""
        return not self.item.sampling.greedy or self.gate.rule is not None


class _Attached:
    """An arena, and the model over it."""

    def __init__(self, arena: HostArena, forward: DraftForward, parts: Mapping[str, Parts]) -> None:
        self.arena, self.forward = arena, forward
        self.parts = parts  # the stored weights that the model multiplies with; none where they are packed
        self.cache = DraftCache(*map(arena.tensor, (KV_KEYS, KV_VALUES, TAIL_KEYS, TAIL_VALUES)))
        self.leases, self.cached = arena.tensor(SLOT_LEASES), arena.tensor(SLOT_CACHED)
        self.block_tables = arena.tensor(BLOCK_TABLES)
        self.draft_probs, self.draft_rounds = arena.tensor(DRAFT_PROBS), arena.tensor(DRAFT_ROUNDS)


class LocalDrafter:
    """The drafter of one process (``qspec.interfaces.Drafter``). Made by ``load``; used by one thread."""

    def __init__(
        self, model: ConvertedModel, config: StackConfig, plan: MethodPlan, store: MethodPlan, progress: Progress
    ) -> None:
        self._model, self._methods, self._store = model, plan, store
        native = plan.backend is Backend.CPU_NATIVE
        self._threads = native_threads(config.threads, progress) if native else 0
        self._vocab_fingerprint = vocab_fingerprint(model.tokenizer_directory)
        self._attached: _Attached | None = None
        packed = [name for name, choice in plan.layers.items() if not native and is_packed(choice)]
        self._stored = [name for name in plan.layers if name not in packed]
        private = [name for name in self._stored if not plan.held_by(store, name)]
        self._packed: dict[str, Int8Linear] = {}
        if packed:
            with model.open_weights() as weights, model.open_int8() as int8:
                self._packed = packed_linears(packed, int8, weights, progress)
        with LayerWeights(model) as weights:
            shapes = {name: weights.tensors.shape(name) for name in self._stored}
            own = open_weights(layer_regions(private, shapes, plan), model.fingerprint, weights, progress)
        self._private = shared_parts(own, private, plan, plan)
        own.close()
        for name in dict.fromkeys(
            kernel_name(choice, plan.backend)
            for choice in map(plan.layers.__getitem__, self._stored) if not is_plain(choice)
        ):
            progress(name, None)
        self._memory = self._private_memory(shapes)

    @classmethod
    def load(cls, config: StackConfig, *, progress: Progress) -> LocalDrafter:
        """Convert the model if need be and prepare private weights; needs no arena yet. ``InvalidInput``."""
        for role in (Role.VERIFY, Role.DRAFT):
            check_methods(config, role, Backend.CPU)  # before a conversion that takes long
        check_kernels(config)
        if config.draft_quantization == NO_DRAFTER:
            raise InvalidInput.field("draft_quantization", "a drafter needs a method; 'off' means to start none")
        model = prepare(config.model, progress=progress)
        backend = choose_backend(config, model.config, progress)
        store = plan_verify(config, linear_names(model.config), backend, stored=model.stored)
        plan = plan_draft(config, backend, verify=store, stored=model.stored)
        tell_fallback("drafter", backend, plan, progress)
        return cls(model, config, plan, store, progress)

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """Map the verifier's arena; ``InvalidInput`` when it is of another model or vocabulary."""
        self.close()
        if verifier.vocab_fingerprint != self._vocab_fingerprint:
            raise InvalidInput.field("model", "drafter and verifier have different vocabularies; give both one model")
        if verifier.arena.fingerprint != arena_fingerprint(self._model.fingerprint, verifier.arena.regions):
            raise InvalidInput.field("model", "the arena holds another model or format than the drafter's")
        arena = HostArena.open(verifier.arena)
        shared = [name for name in self._stored if name not in self._private]
        parts = {**self._private, **shared_parts(arena, shared, self._methods, self._store)}
        forward = drafter_forward(
            arena, self._model.config, self._methods, self._store, parts, self._packed, verifier, self._threads)
        self._attached = _Attached(arena, forward, parts)
        return DrafterDescription(
            epoch=verifier.epoch, method=self._methods.label, kernel=self._kernel_name(), memory=self._memory
        )

    def detach(self, epoch: int) -> None:
        """Unmap the arena of ``epoch``; another one is left alone."""
        if self._attached is not None and self._attached.arena.descriptor.epoch == epoch:
            self._attached.arena.close()
            self._attached = None

    @property
    def forward(self) -> DraftForward:
        """The model over the attached arena's weights, with the kernels of the drafter's method."""
        if self._attached is None:
            raise ContractViolation("the drafter is not attached")
        return self._attached.forward

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """Draft for a batch of sequences, all at once, each as many tokens as it asks for."""
        attached = self._attached
        if attached is None or attached.arena.descriptor.epoch != batch.epoch:
            raise EpochMismatch(f"the drafter is not attached to epoch {batch.epoch}")
        with torch.inference_mode(), attached.forward.computing():
            return self._draft(attached, batch)

    def _draft(self, attached: _Attached, batch: DraftBatch) -> DraftAnswer:
        started = time.perf_counter_ns()
        drafts = {item.slot: draft for item in batch.items if (draft := self._begin(attached, item)) is not None}
        draft_pass = attached.forward.draft_pass([draft.context for draft in drafts.values()], attached.cache)
        prepared = time.perf_counter_ns()
        sampling_ns = 0
        for step in range(max((item.draft_length for item in batch.items), default=0)):
            active = [draft for draft in drafts.values() if draft.item.draft_length > step and not draft.gate.ended]
            if not active:
                break
            fed = {d.item.slot: d.tokens[-1] if d.tokens else d.item.pending_token for d in active}
            hidden = draft_pass.step(fed, step)
            if not any(draft.needs_distributions for draft in active):
                for draft, token in zip(active, attached.forward.greedy(hidden), strict=True):
                    draft.tokens.append(token)
                continue
            logits = attached.forward.logits(hidden)
            sampled = time.perf_counter_ns()
            for index, draft in enumerate(active):
                self._choose(attached, draft, logits[index : index + 1], step)
            sampling_ns += time.perf_counter_ns() - sampled
        for draft in drafts.values():
            if draft.item.sampling.needs_draft_probs:
                attached.draft_rounds[draft.item.slot] = batch.round
        tokens = {slot: draft.tokens for slot, draft in drafts.items()}
        confidences = {slot: draft.gate.confidences for slot, draft in drafts.items()}
        done = time.perf_counter_ns()
        return DraftAnswer.answering(batch, tokens, confidences, StageTimings(
            prepare_ns=prepared - started,
            forward_ns=done - prepared - sampling_ns,
            sample_ns=sampling_ns,
            total_ns=done - started,
        ))

    def close(self) -> None:
        """Let go of the arena."""
        if self._attached is not None:
            self.detach(self._attached.arena.descriptor.epoch)

    def _begin(self, attached: _Attached, item: DraftItem) -> _Draft | None:
        """Find the sequence's blocks; None when the batch speaks of another tenancy or length than the arena."""
        if not 0 <= item.slot < len(attached.leases):
            raise ContractViolation(f"slot {item.slot} does not exist")
        longest = attached.cache.tail_keys.shape[3]
        if not 1 <= item.draft_length <= longest:
            raise ContractViolation(f"draft_length {item.draft_length} is not in 1..{longest}")
        if not 0 <= item.pending_token < self._model.config.vocab_size:
            raise ContractViolation("the pending token lies outside the vocabulary")
        context = item.committed_len - 1
        if int(attached.leases[item.slot]) != item.lease or int(attached.cached[item.slot]) != context:
            return None
        if item.sampling.needs_draft_probs:
            attached.draft_rounds[item.slot] = 0
        count = -(-context // attached.cache.keys.shape[3])
        blocks = tuple(attached.block_tables[item.slot, :count].tolist())
        return _Draft(item, DraftContext(item.slot, context, blocks), DraftGate(item.early_stop))

    def _choose(self, attached: _Attached, draft: _Draft, logits: Tensor, step: int) -> None:
        """Draw the token for the next position; leave its distribution in the arena where it is needed."""
        sampling = draft.item.sampling
        if draft.gate.rule is not None and not draft.gate.admits(confidence(logits, sampling)):
            return
        if sampling.greedy:
            draft.tokens.append(int(logits[0].argmax()))
            return
        token, probs = draft_token(logits, sampling, draft.context.length + 1 + step)
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
        return f"{kernel_name(self._methods.layers[name], self._methods.backend)}, {owner} weights"

    def _private_memory(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[MemoryItem, ...]:
        """What the drafter holds for itself: an item for each format, and room to work."""
        items = []
        if self._packed:
            size = sum(linear.bytes for linear in self._packed.values())
            items.append(MemoryItem(name="weights int8, packed", bytes=size, shared=False))
        by_format: dict[str, dict[str, Parts]] = {}
        for name, parts in self._private.items():
            by_format.setdefault(self._methods.weights(name), {})[name] = parts
        for weights, stored in by_format.items():
            items.append(
                MemoryItem(name=f"weights {weights}", bytes=parts_bytes(stored), shared=False, mapped_file=True))
        if size := private_embedding_bytes(self._model.config, self._methods, self._store):
            items.append(MemoryItem(name="embedding fp32", bytes=size, shared=False))
        return (*items, *working_memory(self._methods, shapes, self._stored))
