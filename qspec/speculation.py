"""The decoding loop: draft, verify, commit, for a batch of sequences at once.

``SpeculationLoop.step`` is one round; read it first. The loop knows sequences of tokens and two interfaces
(``qspec.interfaces``); it does not know whether the workers live in this process, and it sees no text. It owns what
the coordinator owns: who gets a slot, how much is prefilled, how long the drafts are, who has to give way when KV
blocks run out, and what happens when a worker is lost. The text does not depend on any of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qspec.cost_table import CostObserver
from qspec.draft_length import Load
from qspec.draft_policy import Candidate, DraftLengthPolicy
from qspec.errors import ContractViolation, QspecError, WorkerLost
from qspec.interfaces import (
    Admission,
    DraftBatch,
    Drafter,
    DrafterDescription,
    DraftItem,
    EarlyStop,
    PrefillChunk,
    Release,
    Sampling,
    SlotOutcome,
    StageTimings,
    TokenLogprobs,
    Verification,
    Verifier,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.prefix_sharing import PrefixSharing
from qspec.round_report import RoundReport
from qspec.sequence import FinishReason, Sequence
from qspec.slot_ledger import Room, SlotLedger


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that a round decided for one sequence; ``sequence.finish`` is set when they were its last."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they are asked for."""


@dataclass(slots=True)
class _Round:
    """What is known about the round in progress."""

    number: int
    started: float
    drafts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Drafted tokens by slot."""
    confidences: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Confidences of their distributions by slot, where they may end early."""
    draft_s: float = 0.0
    draft_timings: StageTimings | None = None
    rpc_s: float = 0.0
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    """Drafted and accepted tokens of each sequence that was decided on."""


class SpeculationLoop:
    """Generates text for many sequences with one verifier and, while there is one, a drafter. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, early_stop: bool = False) -> None:
        """
        Args:
            clock: seconds that calls are timed with; a simulation brings its own.
            early_stop: whether drafters may end drafts early, for which they have to tell their confidence (what that
                costs, and why they are not asked by default: ``qspec.early_stop``).
        """
        self.clock = clock
        self._early_stop_allowed = early_stop
        self.policy = DraftLengthPolicy(0)
        self.cost_recorder: CostObserver | None = None
        """Takes measurements in the place of the policy's cost table, while there is one."""
        self.prefill_rows = 0
        """Rows that verifiers computed to enter tokens without deciding on them, since the loop began."""
        self.drafter_error: QspecError | None = None
        self.drafter: DrafterDescription | None = None
        self.report: RoundReport | None = None
        """What the last round took and made."""
        self._drafter: Drafter | None = None
        self._verifier: Verifier | None = None
        self._description: VerifierDescription | None = None
        self._ledger = SlotLedger()
        self._round = 0

    # ---- workers ----------------------------------------------------------------------------------------------------

    def attach_verifier(self, verifier: Verifier) -> VerifierDescription:
        """Work with ``verifier`` from now on; every running sequence is prefilled again from its committed tokens."""
        description = verifier.describe()
        self._verifier, self._description = verifier, description
        if self.policy.longest != description.max_draft_length:
            self.policy = DraftLengthPolicy(description.max_draft_length)
        self._forget_drafter(None)
        sharing = PrefixSharing(description.block_size, description.prefix_cache)
        self._ledger.start_over(description.max_slots, self._claim_slots(), sharing)
        return description

    def _claim_slots(self) -> int:
        """End whatever tenancies an earlier loop left behind at this verifier; returns the free blocks.

        Every slot is taken and given back.
        """
        leases = {slot: self._ledger.new_lease() for slot in range(self.description.max_slots)}
        admissions = tuple(Admission(slot=slot, lease=lease, sampling=Sampling()) for slot, lease in leases.items())
        releases = tuple(Release(slot=slot, lease=lease) for slot, lease in leases.items())
        epoch = self.description.epoch
        self._call_verifier(VerifyBatch(epoch=epoch, round=self._next_round(), admissions=admissions))
        return self._call_verifier(VerifyBatch(epoch=epoch, round=self._next_round(), releases=releases)).free_blocks

    def attach_drafter(self, drafter: Drafter) -> DrafterDescription:
        """Draft with ``drafter`` from now on. Raises what its ``attach`` raises; rounds then go on without."""
        self._forget_drafter(None)
        self.drafter = drafter.attach(self.description)
        self._drafter = drafter
        return self.drafter

    @property
    def description(self) -> VerifierDescription:
        """The verifier's description."""
        if self._description is None:
            raise ContractViolation("no verifier is attached")
        return self._description

    @property
    def drafter_attached(self) -> bool:
        """Whether rounds can draft."""
        return self._drafter is not None

    # ---- sequences --------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Sequences in a slot."""
        return len(self._ledger.running)

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._ledger.waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._ledger.running or self._ledger.waiting or self._ledger.releases)

    @property
    def free_blocks(self) -> int:
        """KV blocks that no sequence holds, as of the last round."""
        return self._ledger.free_blocks

    @property
    def preemptions(self) -> int:
        """Sequences that had to give way because KV blocks ran out."""
        return self._ledger.preemptions

    @property
    def room(self) -> Room:
        """What a sequence that is added now would find."""
        return self._ledger.room(self.description.block_size)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it gets a slot when one is free. It must fit into the verifier's ``max_model_len``."""
        if len(sequence.tokens) >= self.description.max_model_len:
            raise ContractViolation(f"{len(sequence.tokens)} tokens do not leave room for a new one")
        self._ledger.enqueue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence (cancelled, or stopped by its text); slot and blocks are given back with the next step."""
        self._ledger.remove(sequence)

    def note_loss(self) -> None:
        """Every sequence in a slot remembers that the verifier was lost in the last round."""
        for sequence in self._ledger.running:
            sequence.note_loss()

    def evict_all(self) -> list[Sequence]:
        """Let go of every sequence, in the order in which they came: another loop can go on with them."""
        return self._ledger.evict_all()

    def committed_tokens(self, slot: int, lease: int) -> list[int] | None:
        """What the sequence of a tenancy has committed, for a drafter that reads tokens; None when it is over.

        The loop's own list: read it, and read it now.
        """
        return next((s.tokens for s in self._ledger.running if (s.slot, s.lease) == (slot, lease)), None)

    # ---- one round --------------------------------------------------------------------------------------------------

    def step(self) -> list[Commit]:
        """Run one round for everyone; returns what was committed.

        Raises ``WorkerLost`` when the verifier is lost: sequences are kept, and the next ``attach_verifier`` goes on
        with them. A lost drafter is noted in ``drafter_error``, and the round goes on without drafts.
        """
        this = _Round(self._next_round(), self.clock())
        self._ledger.admit()
        lengths = self._choose_draft_lengths()
        self._draft(this, lengths)
        batch = self._verify_batch(this)
        called = self.clock()
        answer = self._call_verifier(batch)
        verify_s = self.clock() - called
        this.rpc_s += verify_s - answer.timings.total_ns * 1e-9
        self._observe_verify(batch, answer, verify_s)
        self._ledger.confirm(batch.releases, answer.free_blocks)
        self.prefill_rows += answer.prefill_rows
        commits = self._apply(this, answer, verify_s)
        self.report = self._report(this, batch, answer, verify_s)
        return commits

    def _choose_draft_lengths(self) -> dict[int, int]:
        """Draft length by slot, for the sequences that are ready and get at least one draft."""
        if self._drafter is None:
            return {}
        ready = [
            sequence for sequence in self._ledger.running
            if sequence.admitted and sequence.ready and not sequence.undecided
        ]
        prefill = sum(len(sequence.tokens) - sequence.cached_len for sequence in self._ledger.running) - len(ready)
        load = Load(
            rows=min(prefill, max(self.description.max_batch_rows - len(ready), 0)),
            context=sum(sequence.cached_len for sequence in ready),
        )
        lengths = self.policy.choose([
            Candidate(acceptance=sequence.acceptance, cap=self._draft_cap(sequence), draft_length=sequence.draft_length)
            for sequence in ready
        ], load)
        return {sequence.slot: length for sequence, length in zip(ready, lengths, strict=True) if length > 0}

    def _draft_cap(self, sequence: Sequence) -> int:
        """Most tokens that are worth drafting: a round makes one token anyway; rows and positions are limited.

        Every sequence has its share of the rows, so that drafts never keep a prompt from being prefilled.
        """
        description = self.description
        room = description.max_model_len - len(sequence.tokens)
        rows = description.max_batch_rows // len(self._ledger.running) - 1
        return max(min(sequence.remaining - 1, description.max_draft_length, room, rows), 0)

    def _draft(self, this: _Round, lengths: dict[int, int]) -> None:
        """Ask the drafter; without an answer the round has no drafts."""
        if self._drafter is None or not lengths:
            return
        items = tuple(
            DraftItem(
                slot=sequence.slot,
                lease=sequence.lease,
                committed_len=len(sequence.tokens),
                pending_token=sequence.tokens[-1],
                draft_length=lengths[sequence.slot],
                sampling=sequence.sampling,
                early_stop=self._early_stop(sequence),
            )
            for sequence in self._ledger.running
            if sequence.slot in lengths
        )
        called = self.clock()
        try:
            answer = self._drafter.draft(DraftBatch(epoch=self.description.epoch, round=this.number, items=items))
            for item, result in zip(items, answer.results, strict=True):
                if (result.slot, result.lease) != (item.slot, item.lease) or answer.round != this.number:
                    raise ContractViolation("the drafter answered another question")
                if not self._usable(result.draft_tokens, item.draft_length):
                    raise ContractViolation("the drafter drafted too many tokens or such as do not exist")
                this.drafts[item.slot], this.confidences[item.slot] = result.draft_tokens, result.confidences
        except (QspecError, ValueError) as error:
            this.drafts.clear()
            self._forget_drafter(error if isinstance(error, QspecError) else ContractViolation(str(error)))
            return
        this.draft_s, this.draft_timings = self.clock() - called, answer.timings
        this.rpc_s += this.draft_s - answer.timings.total_ns * 1e-9
        steps = [max(len(result.draft_tokens), len(result.confidences)) for result in answer.results]
        fed = [sum(count > step for count in steps) for step in range(max(steps))]
        context = sum(item.committed_len - 1 for item in items)
        self._costs.observe_draft(fed, context, this.draft_s)

    def _early_stop(self, sequence: Sequence) -> EarlyStop | None:
        """A request that fixes its draft length gets all of it."""
        if not self._early_stop_allowed or sequence.draft_length is not None:
            return None
        return self.policy.early_stop(sequence.acceptance, greedy=sequence.sampling.greedy)

    def _usable(self, tokens: tuple[int, ...], most: int) -> bool:
        return len(tokens) <= most and all(0 <= token < self.description.vocab_size for token in tokens)

    def _verify_batch(self, this: _Round) -> VerifyBatch:
        """Everything that the verifier is asked to do in this round, within its limit of rows."""
        rows = self.description.max_batch_rows
        admissions, chunks, verifications = [], [], []
        ready = {sequence.slot for sequence in self._ledger.running if sequence.ready}
        held_back = self._ledger.sharing.held_back(self._ledger.running)
        rows -= sum(1 + len(this.drafts.get(slot, ())) for slot in ready)
        for sequence in self._ledger.running:
            slot, lease, tokens = sequence.slot, sequence.lease, sequence.tokens
            if slot in held_back:
                continue
            if not sequence.admitted:
                admissions.append(Admission(
                    slot=slot, lease=lease, sampling=sequence.tenancy_sampling, prompt_len=sequence.prompt_len,
                    constraint=sequence.constraint,
                    token_ids=sequence.reusable_tokens if self.description.prefix_cache else (),
                    cache_salt=sequence.cache_salt))
            if slot not in ready:
                missing = tuple(tokens[sequence.cached_len : len(tokens) - 1][: max(rows, 0)])
                if missing:
                    chunks.append(PrefillChunk(
                        slot=slot, lease=lease, start=sequence.cached_len, token_ids=missing,
                        next_token=sequence.token_behind(sequence.cached_len + len(missing))))
                rows -= len(missing)
                if sequence.cached_len + len(missing) < len(tokens) - 1 or rows < 1:
                    continue
                rows -= 1
            verifications.append(Verification(
                slot=slot, lease=lease, committed_len=len(tokens), pending_token=tokens[-1],
                draft_tokens=this.drafts.get(slot, ()),
            ))
        return VerifyBatch(
            epoch=self.description.epoch,
            round=this.number,
            releases=tuple(self._ledger.releases),
            admissions=tuple(admissions),
            prefill_chunks=tuple(chunks),
            verifications=tuple(verifications),
        )

    def _call_verifier(self, batch: VerifyBatch) -> VerifyAnswer:
        """Ask the verifier, once more on a lost stream: a repeated verification gets the stored answer."""
        if self._verifier is None:
            raise WorkerLost("no verifier is attached")
        try:
            answer = self._verifier.verify(batch)
        except WorkerLost:
            answer = self._verifier.verify(batch)
        if answer.round != batch.round:
            raise ContractViolation("the verifier answered another round")
        return answer

    def _apply(self, this: _Round, answer: VerifyAnswer, verify_s: float) -> list[Commit]:
        """Take the verifier's results in: commit, note what is cached, make room."""
        by_slot = {result.slot: result for result in answer.results}
        commits: list[Commit] = []
        short_of_blocks = False
        round_s = self.clock() - this.started
        for sequence in list(self._ledger.running):
            result = by_slot.get(sequence.slot)
            if result is None or result.lease != sequence.lease:
                continue
            sequence.admitted = True
            if result.outcome is SlotOutcome.STALE:
                self._ledger.recompute(sequence)
            elif result.outcome is SlotOutcome.NO_BLOCKS:
                short_of_blocks = True
            else:
                sequence.stats.round_s += round_s
                sequence.stats.verify_s += verify_s
                sequence.stats.draft_s += this.draft_s
                sequence.stats.rpc_s += this.rpc_s
                commits.extend(self._commit(this, sequence, result))
        if short_of_blocks:
            self._ledger.preempt()
        return commits

    def _commit(self, this: _Round, sequence: Sequence, result: VerifyResult) -> list[Commit]:
        """One sequence's new tokens, if it was decided on."""
        sequence.note_reused(result.reused_len)
        sequence.note_prompt_logprobs(sequence.cached_len, result.prompt_logprobs)
        asked, sequence.cached_len = sequence.ready, result.cached_len
        dead_end = result.outcome is SlotOutcome.DEAD_END
        sequence.undecided = asked and not result.token_ids and not dead_end
        if not result.token_ids and not dead_end:
            return []
        drafted = len(this.drafts.get(sequence.slot, ()))
        sequence.stats.record(drafted, result.accepted)
        this.outcomes.append((drafted, result.accepted))
        sequence.stats.rounds_without_drafter += self._drafter is None and self.drafter_error is not None
        self.policy.observe(
            sequence.acceptance, drafted, result.accepted, this.confidences.get(sequence.slot, ()),
            greedy=sequence.sampling.greedy)
        taken = sequence.commit(result.token_ids, self.description.max_model_len)
        if dead_end and sequence.finish is None:
            sequence.finish = FinishReason.DEAD_END
        if sequence.finish is not None:
            self._ledger.vacate(sequence)
        return [Commit(sequence, taken, result.logprobs[: len(taken)])]

    def _report(self, this: _Round, batch: VerifyBatch, answer: VerifyAnswer, verify_s: float) -> RoundReport:
        return RoundReport(
            seconds=self.clock() - this.started,
            draft_s=this.draft_s,
            verify_s=verify_s,
            draft_timings=this.draft_timings,
            verify_timings=answer.timings,
            outcomes=tuple(this.outcomes),
            context=sum(verification.committed_len - 1 for verification in batch.verifications),
            prefill_tokens=sum(len(chunk.token_ids) for chunk in batch.prefill_chunks),
        )

    def _next_round(self) -> int:
        self._round += 1
        return self._round

    def _forget_drafter(self, error: QspecError | None) -> None:
        self._drafter, self.drafter, self.drafter_error = None, None, error

    # ---- costs ------------------------------------------------------------------------------------------------------

    @property
    def _costs(self) -> CostObserver:
        return self.policy.costs if self.cost_recorder is None else self.cost_recorder

    def _observe_verify(self, batch: VerifyBatch, answer: VerifyAnswer, seconds: float) -> None:
        """Of a batch that only decided, and on everyone: nothing else says what deciding costs."""
        decided = all(result.token_ids for result in answer.results)
        if batch.verifications and not batch.prefill_chunks and decided:
            rows = sum(1 + len(verification.draft_tokens) for verification in batch.verifications)
            context = sum(verification.committed_len - 1 for verification in batch.verifications)
            self._costs.observe_verify(rows, context, seconds)
