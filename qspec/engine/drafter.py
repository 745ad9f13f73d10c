"""The drafter: reads the verifier's arena and proposes tokens.

It has no state of its own between batches. Each step feeds one token per sequence; attention reads the committed blocks
in place and then the tail, the only part of the cache that the drafter writes. Its weights are the arena's or its own
(``qspec.engine.draft_weights``).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from qspec.acceptance import draft_token
from qspec.config import StackConfig
from qspec.countdown import Countdown
from qspec.device import configured_backend
from qspec.early_stop import DraftGate
from qspec.engine.backend import check_machine, choose_backend
from qspec.engine.batch_state import numbers
from qspec.engine.decision_handover import DecisionHandover
from qspec.engine.draft_handover import DraftHandover
from qspec.engine.draft_weights import DraftWeights
from qspec.engine.forward import (
    DecidingForward,
    DraftCache,
    DraftContext,
    DraftForward,
    DraftPass,
    GreedyDraftPass,
    SamplingDraftPass,
)
from qspec.engine.gpu_turn import gpu_context, gpu_turn
from qspec.engine.regions import (
    BLOCK_TABLES,
    DRAFT_PROBS,
    DRAFT_ROUNDS,
    KV_KEYS,
    KV_VALUES,
    SLOT_CACHED,
    SLOT_LEASES,
    SLOT_PROMPTS,
    SLOT_TOKENS,
    TAIL_KEYS,
    TAIL_VALUES,
    arena_fingerprint,
)
from qspec.engine.weights import shared_parts
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
from qspec.logit_adjustment import DraftHistory
from qspec.memory.attachment import Arena, open_arena
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.tokenizer import vocab_fingerprint
from qspec.quant.codecs import Parts
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import AUTO, NO_DRAFTER, Backend, Role
from qspec.sampling import confidence


@dataclass(slots=True)
class _Draft:
    """One sequence while it is being drafted for."""

    item: DraftItem
    context: DraftContext
    gate: DraftGate
    history: DraftHistory | None
    """Where something depends on the tokens before."""
    tokens: list[int] = field(default_factory=list)

    @property
    def needs_distributions(self) -> bool:
        """Whether more is asked about than the most probable token."""
        return not self.item.sampling.takes_argmax or self.gate.rule is not None


class _Attached:
    """An arena, and the model over it."""

    def __init__(
        self, arena: Arena, forward: DraftForward, parts: Mapping[str, Parts], handover: DraftHandover | None,
        decisions: DecisionHandover | None,
    ) -> None:
        self.arena, self.forward = arena, forward
        self.parts = parts  # the stored weights that the model multiplies with; none where they are packed
        self.cache = DraftCache(*map(arena.tensor, (KV_KEYS, KV_VALUES, TAIL_KEYS, TAIL_VALUES)))
        self.leases, self.cached = numbers(arena, SLOT_LEASES), numbers(arena, SLOT_CACHED)
        self.block_tables = numbers(arena, BLOCK_TABLES)
        self.tokens, self.prompts = numbers(arena, SLOT_TOKENS), numbers(arena, SLOT_PROMPTS)
        self.draft_probs, self.draft_rounds = arena.tensor(DRAFT_PROBS), numbers(arena, DRAFT_ROUNDS)
        self.handover, self.decisions = handover, decisions


class LocalDrafter:
    """The drafter of one process (``qspec.interfaces.Drafter``). Made by ``load``; used by one thread.

    What it can prepare before it knows the verifier it prepares in ``load``; where a method is ``auto``, the verifier
    says which one, and preparing waits for it. So it does on a GPU, where it holds nothing but its context while it is
    not attached: a verifier that loads counts on that (``qspec.engine.gpu_reserve``).
    """

    def __init__(self, model: ConvertedModel, config: StackConfig, backend: Backend, progress: Progress) -> None:
        self._model, self._config, self._backend, self._progress = model, config, backend, progress
        self._vocab_fingerprint = vocab_fingerprint(model.tokenizer_directory)
        self._attached: _Attached | None = None
        self._context: tuple[MemoryItem, ...] = ()
        self._prepared: DraftWeights | None = None
        if backend is not Backend.CUDA and AUTO not in (config.draft_quantization, config.verify_quantization):
            self._prepare(config)

    @classmethod
    def load(cls, config: StackConfig, *, progress: Progress) -> LocalDrafter:
        """Convert the model if need be and prepare private weights; needs no arena yet. ``InvalidInput``."""
        for role in (Role.VERIFY, Role.DRAFT):
            check_methods(config, role, configured_backend(config))  # before a conversion that takes long
        check_machine(config, progress)
        if config.draft_quantization == NO_DRAFTER:
            raise InvalidInput.field("draft_quantization", "a drafter needs a method; 'off' means to start none")
        model = prepare(config.model, progress=progress)
        return cls(model, config, choose_backend(config, model.config, progress), progress)

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """Map the verifier's arena; ``InvalidInput`` when it is of another model or vocabulary, or of a stack without a
        drafter whose method could be taken."""
        self.close()
        if verifier.vocab_fingerprint != self._vocab_fingerprint:
            raise InvalidInput.field("model", "drafter and verifier have different vocabularies; give both one model")
        with gpu_turn(self._backend, self._progress):
            if self._backend is Backend.CUDA and not self._context:
                self._context = (gpu_context(),)
            weights = self._prepare(self._settled(verifier))
            forward = self._over(verifier, weights)
        passes = forward.memory if isinstance(forward, DecidingForward) else ()
        return DrafterDescription(
            epoch=verifier.epoch, method=weights.methods.label, kernel=weights.kernel_name(),
            memory=(*weights.memory, *self._context, *passes),
        )

    def _over(self, verifier: VerifierDescription, weights: DraftWeights) -> DraftForward:
        """Map the arena and make the model over it."""
        if verifier.arena.fingerprint != arena_fingerprint(self._model.fingerprint, verifier.arena.regions):
            raise InvalidInput.field("model", "the arena holds another model or format than the drafter's")
        arena = open_arena(verifier.arena)
        parts = {**weights.private, **shared_parts(arena, weights.shared, weights.methods, weights.store)}
        forward = drafter_forward(
            arena, self._model.config, weights.methods, weights.store, parts, weights.packed, verifier, weights.threads,
            self._progress)
        handover = DraftHandover(arena, self._model.config.vocab_size) if verifier.awaits_drafts else None
        watches = self._backend is Backend.CUDA
        decisions = DecisionHandover(arena, watches=watches) if verifier.asked_ahead else None
        self._attached = _Attached(arena, forward, parts, handover, decisions)
        return forward

    def _settled(self, verifier: VerifierDescription) -> StackConfig:
        """The configuration with what the verifier says in the place of ``auto``."""
        if self._config.draft_quantization == AUTO and verifier.draft_quantization == NO_DRAFTER:
            raise InvalidInput.field(
                "draft_quantization", "the verifier was told that there is no drafter; name a method, or start none")
        return self._config.settled(draft=verifier.draft_quantization, verify=verifier.verify_quantization)

    def _prepare(self, config: StackConfig) -> DraftWeights:
        """The weights of a configuration without ``auto``; those of the last call if it has the same methods."""
        if self._prepared is None or self._prepared.config != config:
            self._prepared = DraftWeights.prepare(self._model, config, self._backend, self._progress)
        return self._prepared

    def detach(self, epoch: int) -> None:
        """Unmap the arena of ``epoch``; another one is left alone."""
        if self._attached is not None and self._attached.arena.descriptor.epoch == epoch:
            self._attached.arena.close()
            self._attached = None
            if self._backend is Backend.CUDA:
                self._prepared = None
                torch.cuda.empty_cache()  # nothing where no GPU is in use

    @property
    def weights(self) -> DraftWeights:
        """What it multiplies with, and where that lies."""
        if self._prepared is None:
            raise ContractViolation("the drafter knows no method yet")
        return self._prepared

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

    def give_up_round(self, epoch: int, round_number: int) -> None:
        """Nobody wants the drafts of a round: it no longer waits for the decisions of the one before. For any thread.
        """
        attached = self._attached
        if attached is not None and attached.decisions is not None and attached.arena.descriptor.epoch == epoch:
            attached.decisions.give_up(round_number)

    def _placed(self, attached: _Attached, batch: DraftBatch) -> list[DraftItem]:
        """The items whose sequences' lengths are known, once the rounds that they come after have been decided."""
        rounds = [item.after_round for item in batch.items if item.after_round]
        if not rounds:
            return list(batch.items)
        if attached.decisions is None:
            raise ContractViolation("the verifier tells drafters nothing of its decisions")
        attached.decisions.wait(max(rounds), batch.round)
        placed = (attached.decisions.placed(item) if item.after_round else item for item in batch.items)
        return [item for item in placed if item is not None]

    def _draft(self, attached: _Attached, batch: DraftBatch) -> DraftAnswer:
        late = Countdown(batch.time_left_s)
        items = self._placed(attached, batch)
        started = time.perf_counter_ns()
        drafts = {item.slot: draft for item in items if (draft := self._begin(attached, item)) is not None}
        draft_pass = attached.forward.draft_pass([draft.context for draft in drafts.values()], attached.cache)
        prepared = time.perf_counter_ns()
        sampling_ns = 0
        drafted = late.over or _draft_at_once(draft_pass, list(drafts.values()), attached.draft_probs)
        for step in range(0 if drafted else max((item.draft_length for item in items), default=0)):
            active = [draft for draft in drafts.values() if draft.item.draft_length > step and not draft.gate.ended]
            if not active or late.over:
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
        if attached.draft_probs.is_cuda:
            torch.cuda.current_stream().synchronize()  # what was copied there must be there when the verifier reads it
        for draft in drafts.values():
            if draft.item.sampling.needs_draft_probs:
                attached.draft_rounds[draft.item.slot] = batch.round
        tokens = {slot: draft.tokens for slot, draft in drafts.items()}
        confidences = {slot: draft.gate.confidences for slot, draft in drafts.items()}
        done = time.perf_counter_ns()
        answer = DraftAnswer.answering(batch, tokens, confidences, StageTimings(
            prepare_ns=prepared - started,
            forward_ns=done - prepared - sampling_ns,
            sample_ns=sampling_ns,
            total_ns=done - started,
        ))
        if attached.handover is not None:
            attached.handover.put(batch.round, answer.results)
        return answer

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
        named = (item.pending_token, *dict(item.sampling.logit_bias), *item.sampling.ending_token_ids)
        if not all(0 <= token < self._model.config.vocab_size for token in named):
            raise ContractViolation("a token lies outside the vocabulary")
        context = item.committed_len - 1
        if int(attached.leases[item.slot]) != item.lease or int(attached.cached[item.slot]) != context:
            return None
        if item.sampling.needs_draft_probs:
            attached.draft_rounds[item.slot] = 0
        count = -(-context // attached.cache.keys.shape[3])
        blocks = tuple(attached.block_tables[item.slot, :count].tolist())
        history = None
        if item.sampling.adjusts_logits:
            committed = [*attached.tokens[item.slot, :context].tolist(), item.pending_token]
            history = DraftHistory(torch.tensor(committed), int(attached.prompts[item.slot]))
        return _Draft(item, DraftContext(item.slot, context, blocks), DraftGate(item.early_stop), history)

    def _choose(self, attached: _Attached, draft: _Draft, logits: Tensor, step: int) -> None:
        """Draw the token for the next position; leave its distribution in the arena where it is needed."""
        sampling = draft.item.sampling
        if draft.history is not None:
            logits = draft.history.adjust(logits, sampling, draft.tokens)
        if draft.gate.rule is not None and not draft.gate.admits(confidence(logits, sampling)):
            return
        if sampling.greedy:
            draft.tokens.append(int(logits[0].argmax()))
            return
        token, probs = draft_token(logits, sampling, draft.context.length + 1 + step)
        if sampling.needs_draft_probs:
            attached.draft_probs[draft.item.slot, step] = probs[0]
        draft.tokens.append(token)


def _draft_at_once(draft_pass: DraftPass, drafts: list[_Draft], distributions: Tensor) -> bool:
    """Draft all tokens in one go, where the pass can do what is asked for; whether it was done.

    Steps beyond a sequence's own draft length cost nothing and are dropped.
    """
    if not drafts:
        return False
    longest = max(draft.item.draft_length for draft in drafts)
    fed = {draft.item.slot: draft.item.pending_token for draft in drafts}
    tokens: dict[int, list[int]] | None = None
    if not any(draft.needs_distributions for draft in drafts):
        if _is_kind(type(draft_pass), GreedyDraftPass):
            tokens = cast(GreedyDraftPass, draft_pass).greedy_steps(fed, longest)
    elif _is_kind(type(draft_pass), SamplingDraftPass) and all(draft.gate.rule is None for draft in drafts):
        samplings = {draft.item.slot: draft.item.sampling for draft in drafts}
        tokens = cast(SamplingDraftPass, draft_pass).sampled_steps(fed, samplings, longest, distributions)
    if tokens is None:
        return False
    for draft in drafts:
        draft.tokens += tokens[draft.item.slot][: draft.item.draft_length]
    return True


@functools.lru_cache
def _is_kind(kind: type, protocol: type) -> bool:
    """Whether instances of a class keep a protocol: asked once, because Python takes long over it."""
    return issubclass(kind, protocol)
