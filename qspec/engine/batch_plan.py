"""What a verify batch asks of each slot: releases, admissions, and rows to compute with blocks to hold them.

Planning changes the slot table and nothing else; no row is computed here. What can happen to a slot in normal life is
an outcome in its ``Work`` (stale, no blocks, late), what the protocol forbids is a ``ContractViolation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from qspec.engine.slots import SlotTable, Tenancy
from qspec.errors import ContractViolation
from qspec.interfaces import PrefillChunk, SlotOutcome, TokenLogprobs, Verification, VerifyBatch, VerifyResult


@dataclass(slots=True)
class Work:
    """What a batch asks of one slot, and what came of it."""

    slot: int
    lease: int
    tenancy: Tenancy | None = None
    outcome: SlotOutcome = SlotOutcome.OK
    start: int = 0
    token_ids: list[int] = field(default_factory=list)
    """Rows to compute, at positions ``start``, ``start + 1``, …"""
    next_token: int | None = None
    """The token behind a prefilled chunk, where it matters."""
    verification: Verification | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    result: VerifyResult | None = None

    @property
    def end(self) -> int:
        """First position behind the rows."""
        return self.start + len(self.token_ids)

    @property
    def decided_rows(self) -> int:
        """How many of the rows, the last ones, are decided on; the others prefill."""
        return 0 if self.verification is None else 1 + len(self.verification.draft_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may ask for."""

    max_batch_rows: int
    max_draft_length: int
    max_model_len: int
    vocab_size: int


class BatchPlanner:
    """Turns batches into work over a slot table."""

    def __init__(self, slots: SlotTable, draft_rounds: NDArray[Any], limits: BatchLimits) -> None:
        """``draft_rounds``: ``[slots]``, the round of the draft distributions that lie in the arena."""
        self._slots, self._draft_rounds, self._limits = slots, draft_rounds, limits

    def plan(self, batch: VerifyBatch) -> list[Work]:
        """Apply releases and admissions; turn the rest into rows, reserving blocks. One entry per slot named."""
        for release in batch.releases:
            self._slots.release(release)
        works: dict[int, Work] = {}
        for admission in batch.admissions:
            work = self._work(works, admission.slot, admission.lease)
            self._valid_tokens([token for token, _ in admission.sampling.logit_bias])
            self._valid_tokens(admission.sampling.ending_token_ids)
            self._valid_tokens(admission.token_ids)
            if len(admission.token_ids) > self._limits.max_model_len:
                raise ContractViolation(f"slot {admission.slot} would pass {self._limits.max_model_len} positions")
            if admission.token_ids and admission.sampling.prompt_logprobs is not None:
                raise ContractViolation("log-probabilities of a prompt come of rows that are computed, not found")
            if self._slots.admit(admission):
                work.tenancy, work.outcome = self._slots.get(admission.slot, admission.lease), SlotOutcome.OK
        for chunk in batch.prefill_chunks:
            self._plan_chunk(self._work(works, chunk.slot, chunk.lease), chunk, batch)
        for verification in batch.verifications:
            self._plan_verification(self._work(works, verification.slot, verification.lease), verification, batch)
        rows = sum(len(work.token_ids) for work in works.values())
        if rows > self._limits.max_batch_rows:
            raise ContractViolation(f"a batch of {rows} rows exceeds the limit of {self._limits.max_batch_rows}")
        return list(works.values())

    def _work(self, works: dict[int, Work], slot: int, lease: int) -> Work:
        """The entry of a slot; stale when the lease is not the current one."""
        if slot not in works:
            tenancy = self._slots.get(slot, lease)
            works[slot] = Work(slot, lease, tenancy, SlotOutcome.OK if tenancy else SlotOutcome.STALE)
        if works[slot].lease != lease:
            raise ContractViolation(f"slot {slot} is named with two leases in one batch")
        return works[slot]

    def _plan_chunk(self, work: Work, chunk: PrefillChunk, batch: VerifyBatch) -> None:
        """Add a chunk's tokens that are not cached yet, unless it is too late for them."""
        if work.tenancy is None or work.outcome is not SlotOutcome.OK:
            return
        cached = work.end if work.token_ids else work.tenancy.cached_len
        if chunk.start > cached:
            work.outcome = SlotOutcome.STALE
            return
        new = self._valid_tokens(chunk.token_ids[cached - chunk.start :])
        if chunk.next_token is not None:
            self._valid_tokens((chunk.next_token,))
        elif work.tenancy.sampling.prompt_logprobs is not None:
            raise ContractViolation("a chunk of a prompt whose log-probabilities are told needs the token behind it")
        if not new:
            if chunk.start == work.tenancy.prefilled_from:
                work.prompt_logprobs = work.tenancy.prompt_logprobs
            return
        if batch.late:
            work.outcome = SlotOutcome.LATE
            return
        if not self._reserve(work, cached + len(new)):
            return
        if not work.token_ids:
            work.start = cached
        work.token_ids.extend(new)
        work.next_token = chunk.next_token

    def _plan_verification(self, work: Work, verification: Verification, batch: VerifyBatch) -> None:
        """Add the pending token and the drafts, or take the stored answer; without either it may be too late."""
        if work.tenancy is None or work.outcome is not SlotOutcome.OK:
            return
        if verification.after_round:
            continued = _continued(work.tenancy, verification)
            if continued is None:
                return
            verification = continued
        tenancy, length, drafts = work.tenancy, verification.committed_len, verification.draft_tokens
        if tenancy.answer is not None and tenancy.answered_len == length:
            work.result = tenancy.answer
            return
        if len(drafts) > self._limits.max_draft_length:
            raise ContractViolation(f"{len(drafts)} drafted tokens exceed {self._limits.max_draft_length}")
        if length - 1 + 1 + len(drafts) > self._limits.max_model_len:
            raise ContractViolation(f"slot {work.slot} would pass {self._limits.max_model_len} positions")
        cached = work.end if work.token_ids else tenancy.cached_len
        needs_probs = bool(drafts) and tenancy.sampling.needs_draft_probs
        outdated = needs_probs and int(self._draft_rounds[work.slot]) != batch.round
        if cached != length - 1 or outdated:
            work.outcome = SlotOutcome.STALE
            return
        if batch.late:
            work.outcome = SlotOutcome.LATE
            return
        tokens = self._valid_tokens((verification.pending_token, *drafts))
        if not self._reserve(work, length + len(drafts)):
            return
        if not work.token_ids:
            work.start = cached
        work.token_ids.extend(tokens)
        work.verification = verification

    def _valid_tokens(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The token ids, if all are in the vocabulary."""
        if any(not 0 <= token < self._limits.vocab_size for token in token_ids):
            raise ContractViolation("a token id lies outside the vocabulary")
        return token_ids

    def _reserve(self, work: Work, positions: int) -> bool:
        """Reserve blocks; without them the slot does nothing in this batch."""
        assert work.tenancy is not None
        if positions > self._limits.max_model_len:
            raise ContractViolation(f"slot {work.slot} would pass {self._limits.max_model_len} positions")
        if self._slots.reserve(work.slot, work.tenancy, positions):
            return True
        work.outcome = SlotOutcome.NO_BLOCKS
        work.token_ids.clear()
        return False


def _continued(tenancy: Tenancy, verification: Verification) -> Verification | None:
    """The verification with what the round before left; None if that decided nothing or ended the text."""
    answer, length = tenancy.answer, tenancy.cached_len + 1
    if answer is None or tenancy.answered_round != verification.after_round or answer.outcome is not SlotOutcome.OK:
        return None
    room = verification.end_len - length if verification.end_len else len(verification.draft_tokens) + 1
    if tenancy.answered_len + len(answer.token_ids) != length or room < 1:
        return None
    return replace(
        verification, committed_len=length, pending_token=answer.token_ids[-1], after_round=0, end_len=0,
        draft_tokens=verification.draft_tokens[: room - 1])
