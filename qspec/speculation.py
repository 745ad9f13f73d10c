"""The decoding loop: draft, verify, commit, for a batch of sequences at once.

``SpeculationLoop.step`` is one round; read it first. The loop knows sequences of tokens and two interfaces
(``qspec.interfaces``); it does not know whether the workers live in this process, and it sees no text. It owns what
the coordinator owns: who gets a slot, how much is prefilled, how long the drafts are, who has to give way when KV
blocks run out, and what happens when a worker is lost. The text does not depend on any of that.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from qspec.asked_round import AskedRound
from qspec.cost_table import CostObserver
from qspec.draft_call import check_drafts
from qspec.draft_length import Load
from qspec.draft_policy import PLAN_EVERY, Candidate, DraftLengthPolicy
from qspec.errors import ContractViolation, QspecError, WorkerLost
from qspec.interfaces import (
    Admission,
    DraftAnswer,
    DraftBatch,
    Drafter,
    DrafterDescription,
    DraftItem,
    EarlyStop,
    Release,
    Sampling,
    SlotOutcome,
    TokenLogprobs,
    Verifier,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.open_round import OpenRound
from qspec.overlap import AwaitingVerifier, HandingDrafter, Pending, begin_both, with_drafts
from qspec.prefix_sharing import PrefixSharing
from qspec.room import Room
from qspec.round_batch import BatchRows, RoundPlan, goes_on, latest_deadline
from qspec.round_report import RoundReport
from qspec.sequence import FinishReason, Sequence
from qspec.slot_ledger import SlotLedger

AHEAD_BELOW_S = 0.05
"""Rounds that are shorter than this are asked for ahead: messages would take a few per cent of them. Whoever comes or
goes meanwhile waits for one round more, which is why longer ones are not."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that a round decided for one sequence; ``sequence.finish`` is set when they were its last."""

    sequence: Sequence
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they are asked for."""


class SpeculationLoop:
    """Generates text for many sequences with one verifier and, while there is one, a drafter. Used by one thread."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, early_stop: bool = False,
        max_prefill_s: float = math.inf,
    ) -> None:
        """
        Args:
            clock: seconds that calls are timed with, and that deadlines are by; a simulation brings its own.
            early_stop: whether drafters may end drafts early, for which they have to tell their confidence (what that
                costs, and why they are not asked by default: ``qspec.early_stop``).
            max_prefill_s: seconds that entering prompts may add to a round in which other texts go on
                (``qspec.prefill_share``). By default prompts take all the rows that there are: best for throughput,
                where nobody reads along.
        """
        self.clock = clock
        self._early_stop_allowed = early_stop
        self._max_prefill_s = max_prefill_s
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
        self._both: tuple[HandingDrafter, AwaitingVerifier] | None = None
        """Both workers, where they can be asked at once."""
        self._verifier: Verifier | None = None
        self._description: VerifierDescription | None = None
        self._ledger = SlotLedger()
        self._round = 0
        self.rounds_asked_ahead = 0
        """Rounds whose workers were asked before the round before was answered."""
        self._ahead: AskedRound | None = None
        """The next round, if its workers have been asked already."""
        self._answered = 0.0  # when the verifier's last answer came

    # ---- workers ----------------------------------------------------------------------------------------------------

    def attach_verifier(self, verifier: Verifier) -> VerifierDescription:
        """Work with ``verifier`` from now on; every running sequence is prefilled again from its committed tokens."""
        self._drop_ahead()
        description = verifier.describe()
        self._verifier, self._description = verifier, description
        if self.policy.longest != description.max_draft_length:
            self.policy = DraftLengthPolicy(
                description.max_draft_length, plan_every=1 if self._early_stop_allowed else PLAN_EVERY)
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
        if self.description.awaits_drafts and isinstance(drafter, HandingDrafter) and isinstance(
                self._verifier, AwaitingVerifier):
            self._both = drafter, self._verifier
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
        return bool(self._ledger.running or self._ledger.waiting or self._ledger.releases or self._ahead)

    @property
    def asked_ahead(self) -> bool:
        """Whether the workers have been asked for the next round already: a step then does not wait before it asks."""
        return self._ahead is not None

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

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> list[Commit]:
        """Run one round for everyone; returns what was committed.

        ``meanwhile`` is called once the workers have been asked, before their answer is waited for.

        Raises ``WorkerLost`` when the verifier is lost: sequences are kept, and the next ``attach_verifier`` goes on
        with them. A lost drafter is noted in ``drafter_error``, and the round goes on without drafts.
        """
        asked: AskedRound | None = None
        try:
            asked = self._ask_next()
            meanwhile()
            batch, answer = self._await(asked)
        except BaseException:
            self._drop_ahead()
            if asked is not None:
                asked.cancel()
            raise
        this = asked.this
        rows = BatchRows.of(batch)
        self._observe(asked, batch, rows, answer)
        self._ledger.confirm(batch.releases, answer.free_blocks)
        self.prefill_rows += answer.prefill_rows
        commits = self._apply(this, answer)
        self.report = this.report(rows, self.clock())
        return commits

    def _ask_next(self) -> AskedRound:
        """The next round; the one after it has been asked for, too, where that is of use."""
        asked, self._ahead = self._ahead, None
        if asked is None:
            this = OpenRound(self._next_round(), self.clock())
            self._ledger.admit()
            asked = self._ask(this, RoundPlan.of(
                self._ledger, self.description, self.policy.costs, self._prefill_bound_s))
        else:
            asked.called = asked.this.started = self._answered
        if self._asks_ahead(asked):
            plan = RoundPlan.of(
                self._ledger, self.description, self.policy.costs, self._prefill_bound_s, before=asked.batch)
            with contextlib.suppress(WorkerLost):  # which this round's answer will tell
                self._ahead = self._ask(
                    OpenRound(self._next_round(), 0.0), plan, sent=len(asked.batch.releases))
                self.rounds_asked_ahead += 1
        return asked

    @property
    def _prefill_bound_s(self) -> float:
        """Seconds that prompts may add to the next round; while costs are measured nobody reads along."""
        return self._max_prefill_s if self.cost_recorder is None else math.inf

    def _asks_ahead(self, asked: AskedRound) -> bool:
        """Whether to ask for the round after ``asked`` before that is answered."""
        ledger, last = self._ledger, self.report
        if asked.verifying is None or not self._workers_go_on or self.cost_recorder is not None:
            return False
        if last is None or last.seconds > AHEAD_BELOW_S or ledger.waiting:
            return False
        return goes_on(ledger.running, asked.batch, self.description)

    @property
    def _workers_go_on(self) -> bool:
        """Whether the workers can be asked before they have answered: a drafter elsewhere has to know where to begin.
        """
        return self.description.asked_ahead and isinstance(self._verifier, AwaitingVerifier) and (
            self._drafter is None or self._both is not None)

    def _drop_ahead(self) -> None:
        """Nobody waits for the round that was asked for ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()

    def _draft_items(self, plan: RoundPlan) -> tuple[DraftItem, ...]:
        """Whom to draft for, and how many tokens: those that can be drafted for and get at least one."""
        if self._drafter is None:
            return ()
        texts = plan.drafting
        load = Load(
            rows=plan.prefill_rows, context=sum(text.cached_len for text in texts), joining=plan.joining)
        lengths = self.policy.choose([
            Candidate(acceptance=text.acceptance, cap=cap, draft_length=text.draft_length)
            for text, cap in zip(texts, plan.draft_caps, strict=True)
        ], load)
        return tuple(
            DraftItem(
                slot=text.slot, lease=text.lease, committed_len=len(text.tokens), pending_token=text.tokens[-1],
                draft_length=length, sampling=text.sampling, early_stop=self._early_stop(text),
                after_round=plan.after_round, end_len=plan.end_len(text))
            for text, length in zip(texts, lengths, strict=True) if length
        )

    def _early_stop(self, sequence: Sequence) -> EarlyStop | None:
        """A request that fixes its draft length gets all of it."""
        if not self._early_stop_allowed or sequence.draft_length is not None:
            return None
        return self.policy.early_stop(sequence.acceptance, greedy=sequence.sampling.greedy)

    def _ask(self, this: OpenRound, plan: RoundPlan, *, sent: int = 0) -> AskedRound:
        """Ask for a round: both workers at once where they can, else the drafter, whose answer is waited for.

        ``sent``: releases that are on their way already.
        """
        releases = self._ledger.releases[sent:]
        items = self._draft_items(plan)
        drafting = {item.slot for item in items}
        deadline = latest_deadline([text for text in plan.drafting if text.slot in drafting])
        drafts = DraftBatch(
            epoch=self.description.epoch, round=this.number, items=items, time_left_s=self._time_left(deadline))
        awaited = {item.slot: item.draft_length for item in items} if self._both is not None else {}
        batch = plan.batch({}, number=this.number, releases=releases, awaited=awaited)
        asked = AskedRound(
            this=this, plan=plan, drafts=drafts, called=self.clock(),
            batch=replace(batch, time_left_s=self._time_left(plan.deadline)))
        if items and self._both is not None:
            answer, asked.verifying = begin_both(*self._both, drafts, asked.batch)
            if isinstance(answer, QspecError):
                self._forget_drafter(answer)
            else:
                asked.drafting = answer
        elif items and self._drafter is not None:
            try:
                self._take_drafts(asked, self._drafter.draft(drafts))
            except QspecError as error:
                self._forget_drafter(error)
            asked.batch = plan.batch(this.drafts, number=this.number, releases=releases)
            asked.called = self.clock()
        elif isinstance(self._verifier, AwaitingVerifier):
            asked.verifying = self._verifier.begin_verify(asked.batch)
        return asked

    def _await(self, asked: AskedRound) -> tuple[VerifyBatch, VerifyAnswer]:
        """Wait for a round that was asked for; what was decided on, and the answer.

        Without an answer of the drafter the round has no drafts.
        """
        this, plan, at_once = asked.this, asked.plan, asked.drafting is not None
        if asked.drafting is not None:
            try:
                self._take_drafts(asked, asked.drafting.result())
            except QspecError as error:
                if isinstance(self._verifier, AwaitingVerifier):
                    self._verifier.give_up_drafts(asked.batch.epoch, asked.batch.round)
                self._forget_drafter(error)
        batch = self._settled(asked)
        answer = self._call_verifier(batch, plan.deadline, asked.verifying)
        self._answered = self.clock()
        if at_once:
            this.verified_meanwhile(answer, self._answered - asked.called, ahead=plan.ahead)
        else:
            this.verified(answer, self._answered - asked.called)
        return batch, answer

    def _take_drafts(self, asked: AskedRound, answer: DraftAnswer) -> None:
        """Take the drafter's answer in, if it is one."""
        check_drafts(answer, asked.drafts, self.description.vocab_size)
        asked.this.drafted(answer, self.clock() - asked.called)

    def _settled(self, asked: AskedRound) -> VerifyBatch:
        """What a round decides on, with all that is known by now: the drafts, and what the round before left."""
        batch = with_drafts(asked.batch, asked.this.drafts)
        if not asked.plan.ahead:
            return batch
        running = {(text.slot, text.lease): text.tokens for text in self._ledger.running}
        return replace(batch, verifications=tuple(
            replace(part, committed_len=len(tokens), pending_token=tokens[-1], after_round=0)
            for part in batch.verifications if (tokens := running.get((part.slot, part.lease))) is not None))

    def _call_verifier(
        self, batch: VerifyBatch, deadline: float | None = None, pending: Pending[VerifyAnswer] | None = None
    ) -> VerifyAnswer:
        """Ask the verifier, once more on a lost stream: a repeated verification gets the stored answer.

        ``pending``: it was asked already, when some of the batch's drafts were not yet known.
        """
        if self._verifier is None:
            raise WorkerLost("no verifier is attached")
        try:
            if pending is not None:
                answer = pending.result()
            else:
                answer = self._verifier.verify(replace(batch, time_left_s=self._time_left(deadline)))
        except WorkerLost:
            self._drop_ahead()
            answer = self._verifier.verify(replace(batch, time_left_s=self._time_left(deadline)))
        if answer.round != batch.round:
            raise ContractViolation("the verifier answered another round")
        return answer

    def _time_left(self, deadline: float | None) -> float | None:
        """Seconds until a deadline, at least 0."""
        return None if deadline is None else max(deadline - self.clock(), 0.0)

    def _apply(self, this: OpenRound, answer: VerifyAnswer) -> list[Commit]:
        """Take the verifier's results in: commit, note what is cached, make room."""
        by_slot = {result.slot: result for result in answer.results}
        commits: list[Commit] = []
        short_of_blocks = False
        round_s = self.clock() - this.started
        for sequence in list(self._ledger.running):
            result = by_slot.get(sequence.slot)
            if result is None or result.lease != sequence.lease:
                continue
            sequence.admitted, sequence.reserved_len = True, result.reserved_len
            if result.outcome is SlotOutcome.STALE:
                self._ledger.recompute(sequence)
            elif result.outcome is SlotOutcome.NO_BLOCKS:
                short_of_blocks = True
            else:
                sequence.stats.round_s += round_s
                sequence.stats.verify_s += this.verify_s
                sequence.stats.draft_s += this.draft_s
                sequence.stats.rpc_s += this.draft_rpc_s + this.verify_rpc_s
                commits.extend(self._commit(this, sequence, result))
        if short_of_blocks:
            self._ledger.preempt()
        return commits

    def _commit(self, this: OpenRound, sequence: Sequence, result: VerifyResult) -> list[Commit]:
        """One sequence's new tokens, if it was decided on."""
        sequence.note_reused(result.reused_len)
        sequence.note_prompt_logprobs(sequence.cached_len, result.prompt_logprobs)
        asked, sequence.cached_len = sequence.ready, result.cached_len
        dead_end = result.outcome is SlotOutcome.DEAD_END
        sequence.undecided = asked and not result.token_ids and not dead_end
        if not result.token_ids and not dead_end:
            return []
        sequence.stats.record(result.drafted, result.accepted)
        this.outcomes.append((result.drafted, result.accepted))
        sequence.stats.rounds_without_drafter += self._drafter is None and self.drafter_error is not None
        self.policy.observe(
            sequence.acceptance, result.drafted, result.accepted, this.confidences.get(sequence.slot, ()),
            greedy=sequence.sampling.greedy)
        taken = sequence.commit(result.token_ids, self.description.max_model_len)
        if dead_end and sequence.finish is None:
            sequence.finish = FinishReason.DEAD_END
        if sequence.finish is not None:
            self._ledger.vacate(sequence)
        return [Commit(sequence, taken, result.logprobs[: len(taken)])]

    def _call_seconds(self, asked: AskedRound, answer: VerifyAnswer) -> tuple[float, float]:
        """What drafting and verifying cost a round.

        Where rounds are asked for ahead they cost what the verifier's clock says, also those that were not, as far as
        it tells of the others: when an answer is read says little of when it came, and a call that was believed to be
        shorter than it can be would have its like chosen from then on. What the verifier idles before it waits for
        drafts is drafting, too: it may get its question late.
        """
        this = asked.this
        if not (self._workers_go_on and this.draft_s + this.verify_s < AHEAD_BELOW_S):
            return this.draft_s, this.verify_s
        idle_s, verify_s = answer.idle_ns * 1e-9 if asked.plan.ahead else 0.0, answer.timings.total_ns * 1e-9
        return (this.draft_s + idle_s, verify_s) if this.fed else (0.0, verify_s + idle_s)

    def _observe(self, asked: AskedRound, batch: VerifyBatch, rows: BatchRows, answer: VerifyAnswer) -> None:
        """Learn what the calls of a round cost, and the round beside them."""
        this = asked.this
        draft_s, verify_s = self._call_seconds(asked, answer)
        jitters = asked.plan.ahead  # what is late in one of its rounds is not there in the next
        if this.fed:
            drafted = {item.slot for item in asked.drafts.items}
            context = sum(part.committed_len - 1 for part in batch.verifications if part.slot in drafted)
            self._costs.observe_draft(this.fed, context, draft_s, jitters=jitters)
        if not _did_what_was_asked(batch, rows, answer):
            return
        if rows.entered:
            self._costs.observe_prefill(rows.entered, rows.attended, rows.decided, rows.context, verify_s)
            return
        self._costs.observe_verify(rows.decided, rows.context, verify_s, jitters=jitters)
        self.policy.costs.overhead.observe(
            drafting=bool(this.fed), calls_s=draft_s + verify_s, seconds=self._answered - this.started)

    @property
    def _costs(self) -> CostObserver:
        return self.policy.costs if self.cost_recorder is None else self.cost_recorder

    def _next_round(self) -> int:
        self._round += 1
        return self._round

    def _forget_drafter(self, error: QspecError | None) -> None:
        ahead = self._ahead
        if ahead is not None and ahead.drafting is not None:
            ahead.drafting.cancel()
            ahead.drafting = None
            if isinstance(self._verifier, AwaitingVerifier):
                self._verifier.give_up_drafts(ahead.batch.epoch, ahead.batch.round)
        self._drafter, self.drafter, self.drafter_error, self._both = None, None, error, None


def _did_what_was_asked(batch: VerifyBatch, rows: BatchRows, answer: VerifyAnswer) -> bool:
    """Whether the verifier computed just the rows that it was asked for, and decided on them."""
    asked = {verification.slot for verification in batch.verifications}
    if not asked.issuperset(result.slot for result in answer.results if result.token_ids):
        return False  # rows of texts that have ended meanwhile
    done = all(
        result.outcome is SlotOutcome.DEAD_END or (
            result.outcome is SlotOutcome.OK and (bool(result.token_ids) or result.slot not in asked))
        for result in answer.results)
    return bool(rows.decided) and done and answer.prefill_rows == rows.entered
