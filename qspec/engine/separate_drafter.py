"""The drafter of another model: its own weights, its own cache, and the verifier's distribution all the same.

Why a third implementation of ``Drafter`` and not a loop of its own: two-model speculation (Leviathan et al. 2023,
algorithm 1; Chen et al. 2023, algorithm 2) differs from drafting with the verifier's own model in one thing only, where
the drafter's KV entries come from. Rounds, acceptance, draft lengths, batching and preemption are the loop's and the
verifier's, and stay as they are; what a drafter proposes can cost time and never changes the text's law.

A draft item names its sequence by slot and lease and says how long it is, which is enough for a drafter that reads the
verifier's cache, and not for one that has to read the tokens. ``committed_tokens`` tells them: the loop's own list, so
that nothing is copied or kept twice. From it the drafter *catches up*, in one pass with the pending token: on the
prompt at first, on two tokens after a full acceptance (the last draft, which it drew and never fed, and the bonus
token), on more after rounds that did not draft. That counts as draft time.

The cache is only a cache. A sequence whose tenancy ended, or that was not drafted for longest, gives its blocks away
and is computed again when it needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qspec.acceptance import draft_token
from qspec.countdown import Countdown
from qspec.early_stop import DraftGate
from qspec.engine.cached_decoder import CachedDecoder
from qspec.engine.forward import Forward
from qspec.engine.passes import SequenceRows
from qspec.engine.regions import DRAFT_PROBS, DRAFT_ROUNDS, SLOT_PROMPTS
from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    MemoryItem,
    StageTimings,
    VerifierDescription,
)
from qspec.kernels.paged_attention import BlockSpan
from qspec.logit_adjustment import DraftHistory
from qspec.memory.arena import HostArena
from qspec.memory.kv_blocks import BlockAllocator
from qspec.sampling import confidence

CommittedTokens = Callable[[int, int], Sequence[int] | None]
"""(slot, lease) to the sequence's committed tokens; None when that tenancy is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """The model that drafts."""

    forward: Forward
    method: str
    """For people: how its weights are kept."""
    vocab_fingerprint: str
    max_positions: int
    """Positions that the decoder knows."""


@dataclass(slots=True)
class _Tenancy:
    """What the cache holds of one sequence."""

    lease: int
    blocks: list[int] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    """Tokens whose entries are cached, drafts that were fed included."""


@dataclass(slots=True)
class _Draft:
    """One sequence while it is being drafted for."""

    item: DraftItem
    tenancy: _Tenancy
    unseen: list[int]
    """Committed tokens to catch up on; the last is the pending one."""
    length: int
    """Tokens to draft: what was asked for, or what the draft model has positions for."""
    gate: DraftGate
    history: DraftHistory | None
    """Where something depends on the tokens before."""
    tokens: list[int] = field(default_factory=list)


class SeparateDrafter:
    """A ``Drafter`` with a model of its own (see the module). Used by the loop's thread, in the verifier's process."""

    def __init__(self, model: DraftModel, committed_tokens: CommittedTokens) -> None:
        self._model, self._committed_tokens = model, committed_tokens
        self._arena: HostArena | None = None

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """Begin with an empty cache as large as the verifier's; ``InvalidInput`` when the vocabularies differ."""
        self.close()
        if verifier.vocab_fingerprint != self._model.vocab_fingerprint:
            raise InvalidInput.field(
                "approx_model",
                f"its vocabulary is not that of {verifier.model}; a drafter must number the same tokens alike: choose "
                "a smaller model of the same family",
            )
        self._cache = CachedDecoder(
            self._model.forward, num_blocks=verifier.num_blocks, block_size=verifier.block_size)
        self._blocks = BlockAllocator(verifier.num_blocks)
        self._tenancies: dict[int, _Tenancy] = {}  # by slot, least recently drafted for first
        self._vocab_size, self._max_rows = verifier.vocab_size, verifier.max_batch_rows
        self._arena = HostArena.open(verifier.arena)
        self._draft_probs, self._draft_rounds = self._arena.tensor(DRAFT_PROBS), self._arena.tensor(DRAFT_ROUNDS)
        self._prompts = self._arena.tensor(SLOT_PROMPTS)
        memory = (MemoryItem(name="KV blocks of the draft model", bytes=self._cache.bytes, shared=False),)
        return DrafterDescription(
            epoch=verifier.epoch, method=self._model.method, kernel="a model and a cache of its own", memory=memory)

    def detach(self, epoch: int) -> None:
        """Forget the arena of ``epoch`` and the cache; another epoch is left alone."""
        if self._arena is not None and self._arena.descriptor.epoch == epoch:
            self.close()

    def close(self) -> None:
        """Let go of everything but the weights."""
        if self._arena is not None:
            del self._draft_probs, self._draft_rounds, self._prompts, self._cache, self._tenancies
            self._arena.close()
            self._arena = None

    @torch.inference_mode()
    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """Catch up and draft for a batch of sequences."""
        started, late = time.perf_counter_ns(), Countdown(batch.time_left_s)
        if self._arena is None or self._arena.descriptor.epoch != batch.epoch:
            raise EpochMismatch(f"the drafter is not attached to epoch {batch.epoch}")
        wanted = {item.slot for item in batch.items}
        drafts = {item.slot: draft for item in batch.items if (draft := self._begin(item, wanted)) is not None}
        active = [draft for draft in drafts.values() if draft.length > 0]
        self._catch_up(active)
        prepared = time.perf_counter_ns()
        step = 0
        while active and not late.over:
            logits = self._feed([(draft, draft.tokens[-1:] or draft.unseen) for draft in active])
            for draft, row in zip(active, logits, strict=True):
                self._choose(draft, row.unsqueeze(0), step)
            step += 1
            active = [draft for draft in active if draft.length > step and not draft.gate.ended]
        for draft in drafts.values():
            if draft.tokens and draft.item.sampling.needs_draft_probs:
                self._draft_rounds[draft.item.slot] = batch.round
        tokens = {slot: draft.tokens for slot, draft in drafts.items()}
        confidences = {slot: draft.gate.confidences for slot, draft in drafts.items()}
        done = time.perf_counter_ns()
        return DraftAnswer.answering(batch, tokens, confidences, StageTimings(
            prepare_ns=prepared - started, forward_ns=done - prepared, total_ns=done - started))

    def _begin(self, item: DraftItem, wanted: set[int]) -> _Draft | None:
        """Find out what the cache lacks of a sequence, and reserve blocks; None when its tenancy is over."""
        if item.sampling.needs_draft_probs:
            self._draft_rounds[item.slot] = 0
        tokens = self._committed_tokens(item.slot, item.lease)
        if tokens is None or len(tokens) != item.committed_len:
            return None
        if tokens[-1] != item.pending_token:
            raise ContractViolation(f"slot {item.slot}: the pending token is not the last committed one")
        tenancy = self._tenancies.pop(item.slot, None)
        if tenancy is None or tenancy.lease != item.lease:
            if tenancy is not None:
                self._blocks.release(tenancy.blocks)
            tenancy = _Tenancy(item.lease)
        self._tenancies[item.slot] = tenancy
        known = _common_prefix(tenancy.fed, tokens, item.committed_len - 1)
        del tenancy.fed[known:]
        length = min(item.draft_length, self._model.max_positions - item.committed_len + 1)
        history = None
        if item.sampling.adjusts_logits:
            history = DraftHistory(torch.tensor(tokens), int(self._prompts[item.slot]))
        draft = _Draft(item, tenancy, list(tokens[known:]), length, DraftGate(item.early_stop), history)
        embeddable = max(draft.unseen) < self._model.forward.config.vocab_size
        if length < 1 or not embeddable or not self._reserve(tenancy, item.committed_len - 1 + length, wanted):
            draft.length = 0
        return draft

    def _reserve(self, tenancy: _Tenancy, positions: int, wanted: set[int]) -> bool:
        """Make sure of blocks, at the cost of sequences that are not in this batch; False when there are not enough."""
        missing = -(-positions // self._cache.block_size) - len(tenancy.blocks)
        if missing <= 0:
            return True
        for slot in [slot for slot in self._tenancies if slot not in wanted]:
            if missing <= self._blocks.free_blocks:
                break
            self._blocks.release(self._tenancies.pop(slot).blocks)
        return self._blocks.extend(tenancy.blocks, missing)

    def _catch_up(self, drafts: list[_Draft]) -> None:
        """Feed all that one pass cannot take together with the pending tokens."""
        for draft in drafts:
            rest = max(self._max_rows // len(drafts), 1)
            while len(draft.unseen) > rest:
                chunk, draft.unseen = draft.unseen[: self._max_rows], draft.unseen[self._max_rows :]
                if not draft.unseen:  # the pending token goes with the first step
                    draft.unseen = [chunk.pop()]
                self._run([(draft, chunk)])

    def _feed(self, fed: list[tuple[_Draft, list[int]]]) -> Tensor:
        """Enter tokens, several a sequence: ``[sequences, V]`` logits of what follows each one's last, V the target's.

        Padding of the vocabulary that only one of the models has is cut off, or cannot be drawn.
        """
        hidden = self._run(fed)
        last = torch.tensor([len(tokens) for _, tokens in fed]).cumsum(0) - 1
        logits = self._cache.logits(hidden[last])[:, : self._vocab_size]
        padding = self._vocab_size - logits.shape[1]
        return torch.nn.functional.pad(logits, (0, padding), value=float("-inf")) if padding else logits

    def _run(self, fed: list[tuple[_Draft, list[int]]]) -> Tensor:
        """Run tokens behind what is cached: ``[rows, H]``."""
        rows = [
            SequenceRows(tuple(tokens), len(draft.tenancy.fed), BlockSpan(tuple(draft.tenancy.blocks)))
            for draft, tokens in fed
        ]
        hidden = self._cache.hidden(rows)
        for draft, tokens in fed:
            draft.tenancy.fed.extend(tokens)
        return hidden

    def _choose(self, draft: _Draft, logits: Tensor, step: int) -> None:
        """Draw the token for the next position; leave its distribution in the arena where it is needed."""
        sampling = draft.item.sampling
        if draft.history is not None:
            logits = draft.history.adjust(logits, sampling, draft.tokens)
        if draft.gate.rule is not None and not draft.gate.admits(confidence(logits, sampling)):
            return
        token, probs = draft_token(logits, sampling, draft.item.committed_len + step)
        if sampling.needs_draft_probs:
            self._draft_probs[draft.item.slot, step] = probs[0]
        draft.tokens.append(token)


def _common_prefix(fed: list[int], tokens: Sequence[int], most: int) -> int:
    """How many leading tokens both have, at most ``most``."""
    length = min(len(fed), most)
    if fed[:length] == tokens[:length]:
        return length
    return next(index for index in range(length) if fed[index] != tokens[index])
