"""The verifier: owns the arena and decides on every token.

A batch becomes one forward pass: releases and admissions change the slot table, prefill chunks and verifications become
rows, and only the rows that are decided on go through ``lm_head``. Every operation is row-invariant, so what a sequence
gets does not depend on the rest of the batch. A verification that was already answered is answered again from memory:
a stream lost after a commit loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.engine.auto_methods import resolve_methods
from qspec.engine.backend import check_machine, choose_backend, tell_fallback
from qspec.engine.batch_plan import BatchLimits, BatchPlanner, Work
from qspec.engine.batch_state import numbers
from qspec.engine.cached_decoder import CachedDecoder
from qspec.engine.constraint_compiler import ConstraintCompiler
from qspec.engine.decision_handover import DecisionHandover
from qspec.engine.draft_handover import DraftHandover
from qspec.engine.forward import DecidingForward, Forward
from qspec.engine.gpu_turn import gpu_turn
from qspec.engine.linears import is_plain, kernel_names
from qspec.engine.passes import SequenceRows
from qspec.engine.prompt_logprobs import note_prompt_logprobs
from qspec.engine.regions import (
    DRAFT_PROBS,
    DRAFT_ROUNDS,
    KV_KEYS,
    KV_VALUES,
)
from qspec.engine.row_decision import decide_by_verdicts, decide_greedily, decide_rows, decided_rows, row_draws
from qspec.engine.slots import SlotTable
from qspec.engine.stores import open_store
from qspec.engine.worker_forward import verifier_forward
from qspec.errors import EpochMismatch, InvalidInput
from qspec.grammar import Grammars
from qspec.interfaces import (
    Progress,
    StageTimings,
    TokenLogprobs,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.kernels.paged_attention import BlockSpan
from qspec.kernels.triton.row_draws import RowVerdict
from qspec.memory.futex import FUTEX_AVAILABLE
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import linear_names
from qspec.models.tokenizer import Tokenizer, vocab_fingerprint
from qspec.overlap import with_drafts
from qspec.quant.method_plan import MethodPlan, check_methods, plan_verify
from qspec.quant.methods import Backend, Role
from qspec.token_logprobs import token_logprobs


class LocalVerifier:
    """The verifier of one process (``qspec.interfaces.Verifier``). Made by ``load``; used by one thread."""

    def __init__(
        self, model: ConvertedModel, config: StackConfig, plan: MethodPlan, epoch: int, progress: Progress, *,
        auto_reason: str = "",
    ) -> None:
        self._config, self._methods, self._auto_reason = config, plan, auto_reason
        self._model = model
        self._vocab_fingerprint = vocab_fingerprint(model.tokenizer_directory)
        self._max_model_len = _max_model_len(model, config)
        with gpu_turn(plan.backend, progress):
            store = open_store(model, config, plan, self._max_model_len, epoch, progress)
            self.arena, self._memory = store.arena, store.memory
            if not all(map(is_plain, plan.layers.values())):
                progress("; ".join(kernel_names(plan)), None)
            self._forward, self._kernel = verifier_forward(
                self.arena, model.config, config, plan, self._max_model_len, store.shapes, progress)
        self._deciding = self._forward if isinstance(self._forward, DecidingForward) else None
        self._keys, self._values = self.arena.tensor(KV_KEYS), self.arena.tensor(KV_VALUES)
        self._draft_probs = self.arena.tensor(DRAFT_PROBS)
        self._handover = DraftHandover(
            self.arena, model.config.vocab_size, watches=plan.backend is Backend.CUDA)
        self._decisions = DecisionHandover(self.arena)
        self._ended_ns = 0  # the last call
        self._constraints = ConstraintCompiler(Grammars(
            lambda: Tokenizer.load(model.tokenizer_directory), vocab_size=model.config.vocab_size))
        self._slots = SlotTable(
            self.arena, config.kv_tokens // config.block_size, config.block_size, prefix_cache=config.prefix_cache)
        self._planner = BatchPlanner(self._slots, numbers(self.arena, DRAFT_ROUNDS), BatchLimits(
            max_batch_rows=config.max_batch_rows, max_draft_length=config.max_draft_length,
            max_model_len=self._max_model_len, vocab_size=model.config.vocab_size,
        ))

    @classmethod
    def load(cls, config: StackConfig, *, progress: Progress, epoch: int) -> LocalVerifier:
        """Convert the model if need be, map its weights and allocate the arena. ``InvalidInput``, ``OutOfMemory``."""
        check_methods(config, Role.VERIFY, configured_backend(config))  # before a conversion that takes long
        check_machine(config, progress)
        return cls.over(prepare(config.model, progress=progress), config, progress=progress, epoch=epoch)

    @classmethod
    def over(cls, model: ConvertedModel, config: StackConfig, *, progress: Progress, epoch: int) -> LocalVerifier:
        """The same for a model that is there already, whatever ``config`` calls it."""
        backend = choose_backend(config, model.config, progress)
        config, reason = resolve_methods(config, model, backend, progress)
        plan = plan_verify(config, linear_names(model.config), backend, stored=model.stored)
        tell_fallback("verifier", backend, plan, progress)
        return cls(model, config, plan, epoch, progress, auto_reason=reason)

    @property
    def config(self) -> StackConfig:
        """What it was loaded with, plain names in the place of ``auto``."""
        return self._config

    @property
    def arena_fds(self) -> tuple[int, ...]:
        """File descriptors of the arena and its weights, to be handed to the drafter."""
        return self.arena.fds

    @property
    def vocab_fingerprint(self) -> str:
        """Equal for two models exactly when they number the same tokens alike."""
        return self._vocab_fingerprint

    @property
    def forward(self) -> Forward:
        """The model over the arena's weights, with the kernels of the verifier's method."""
        return self._forward

    def cached_decoder(self, num_blocks: int) -> CachedDecoder:
        """The model over private KV blocks: a row gets the bits that ``verify`` decides by."""
        return CachedDecoder(self._forward, num_blocks=num_blocks, block_size=self._config.block_size)

    def describe(self) -> VerifierDescription:
        """Model, formats, arena, epoch and limits."""
        config = self._config
        return VerifierDescription(
            model=config.model,
            method=self._methods.label,
            row_invariant=self._methods.row_invariant,
            vocab_size=self._model.config.vocab_size,
            vocab_fingerprint=self._vocab_fingerprint,
            max_model_len=self._max_model_len,
            max_slots=config.max_slots,
            max_draft_length=config.max_draft_length,
            max_batch_rows=config.max_batch_rows,
            block_size=config.block_size,
            num_blocks=config.kv_tokens // config.block_size,
            arena=self.arena.descriptor,
            memory=(*self._memory, *(self._deciding.memory if self._deciding is not None else ())),
            kernel=self._kernel,
            draft_quantization=config.draft_quantization,
            verify_quantization=config.verify_quantization,
            auto_reason=self._auto_reason,
            prefix_cache=config.prefix_cache,
            awaits_drafts=FUTEX_AVAILABLE,
            asked_ahead=FUTEX_AVAILABLE,
        )

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """Apply one batch (``qspec.interfaces.VerifyBatch``)."""
        idle_ns = time.perf_counter_ns() - self._ended_ns if self._ended_ns else 0
        with torch.inference_mode(), self._forward.computing():
            answer = self._verify(batch, idle_ns)
        self._ended_ns = time.perf_counter_ns()
        return answer

    def give_up_drafts(self, epoch: int, round_number: int) -> None:
        """Decide on a round without the drafts that it awaits. For any thread."""
        if epoch == self.arena.descriptor.epoch:
            self._handover.give_up(round_number)

    def _verify(self, batch: VerifyBatch, idle_ns: int) -> VerifyAnswer:
        if batch.epoch != self.arena.descriptor.epoch:
            raise EpochMismatch(f"the verifier is in epoch {self.arena.descriptor.epoch}, not {batch.epoch}")
        batch, waited_ns = self._with_drafts(batch)
        started = time.perf_counter_ns()
        works = self._planner.plan(batch)
        self._constraints.begin(work.tenancy for work in works)
        computed = [work for work in works if work.token_ids]
        decided = [work for work in computed if work.verification is not None]
        prepared = forwarded = time.perf_counter_ns()
        if computed:
            hidden, verdicts = self._run(computed)
            note_prompt_logprobs(computed, hidden, self._forward)
            left = [work for work in decided if work.slot not in verdicts]
            targets = self._targets(left, self._decided_hidden(computed, left, hidden)) if left else []
            forwarded = time.perf_counter_ns()
            self._decide(decided, targets, verdicts)
            for work in decided:
                if work.result is not None and work.tenancy is not None:
                    work.tenancy.answered_round = batch.round
        results = tuple(work.result or self._result(work) for work in works)
        if FUTEX_AVAILABLE:
            self._decisions.put(batch.round, results)
        done = time.perf_counter_ns()
        return VerifyAnswer(
            epoch=batch.epoch,
            round=batch.round,
            results=results,
            free_blocks=self._slots.free_blocks,
            timings=StageTimings(
                prepare_ns=prepared - started,
                forward_ns=forwarded - prepared,
                sample_ns=done - forwarded,
                total_ns=done - started,
            ),
            prefill_rows=sum(len(work.token_ids) - work.decided_rows for work in computed),
            waited_ns=waited_ns,
            idle_ns=idle_ns,
        )

    def _with_drafts(self, batch: VerifyBatch) -> tuple[VerifyBatch, int]:
        """The batch with the drafts that it awaits, once they are in the arena; nanoseconds that this took."""
        awaiting = [verification for verification in batch.verifications if verification.awaited_drafts]
        if not awaiting:
            return batch, 0
        asked = time.perf_counter_ns()
        drafts = self._handover.take(batch.round, awaiting)
        return with_drafts(batch, drafts), time.perf_counter_ns() - asked

    def prepare_constraints(self) -> None:
        """Begin to read the vocabulary as constraints need it; the first would wait for that otherwise."""
        self._constraints.prepare()

    def close(self) -> None:
        """Let go of the arena."""
        self._constraints.close()
        self.arena.close()

    def _run(self, works: list[Work]) -> tuple[Tensor, dict[int, list[RowVerdict]]]:
        """Run the model over all rows, filling the KV blocks: ``[rows, H]``, and by slot the verdicts of those rows
        that the forward decided on in the same go.
        """
        sequences = [
            SequenceRows(tuple(work.token_ids), work.start, BlockSpan(tuple(work.tenancy.blocks)))
            for work in works
            if work.tenancy is not None
        ]
        verdicts: dict[int, list[RowVerdict]] = {}
        if self._deciding is not None:
            draws = row_draws(works, self._deciding, self._draft_probs.shape[1])
            hidden, said = self._deciding.decided_rows(sequences, self._keys, self._values, draws, self._draft_probs)
            at = iter(said)
            of_slots = {work.slot: [next(at) for _ in work.token_ids] for work in works}
            verdicts = {slot: found for slot, rows in of_slots.items() if (found := [row for row in rows if row])}
        else:
            hidden = self._forward.rows(sequences, self._keys, self._values)
        for work in works:
            self._slots.enter_tokens(work.slot, work.start, work.token_ids)
            if work.tenancy is not None and work.verification is None:
                self._slots.set_cached(work.slot, work.tenancy, work.end)
        return hidden, verdicts

    def _decided_hidden(self, works: list[Work], left: list[Work], hidden: Tensor) -> Tensor:
        """The rows of ``left``, some of ``works``, whose logits are needed; nothing is copied where all are."""
        rows = torch.tensor(decided_rows(works, left), dtype=torch.int64)
        return hidden if len(rows) == len(hidden) else hidden[rows.to(hidden.device)]

    def _targets(self, works: list[Work], hidden: Tensor) -> list[int] | Tensor:
        """What the rows of all ``works`` are decided by: greedy tokens where nothing else is asked for, else logits."""
        if all(work.tenancy is not None and work.tenancy.plain_greedy for work in works):
            return self._forward.greedy(hidden)
        return self._forward.logits(hidden)

    def _decide(
        self, works: list[Work], targets: list[int] | Tensor, verdicts: Mapping[int, Sequence[RowVerdict]]
    ) -> None:
        """Accept or reject; commits. ``targets``: of the rows of all ``works`` without ``verdicts``, in order.

        Whose constraint is being compiled is not decided on, and asks again: nobody waits for that.
        """
        first = 0
        for work in works:
            verification, tenancy = work.verification, work.tenancy
            assert verification is not None and tenancy is not None
            drafts, length = verification.draft_tokens, verification.committed_len
            rows = targets[first : first]
            if work.slot in verdicts:
                decision = decide_by_verdicts(drafts, verdicts[work.slot])
            else:
                rows = targets[first : first + len(drafts) + 1]
                first += len(drafts) + 1
                if tenancy.awaits_constraint:
                    self._slots.set_cached(work.slot, tenancy, length - 1)
                    continue
                if isinstance(rows, Tensor):
                    history = self._slots.history(work.slot, length + len(drafts))
                    draft_probs = self._draft_probs[work.slot]
                    draft_probs = draft_probs.cpu() if tenancy.sampling.needs_draft_probs else draft_probs
                    decision = decide_rows(verification, tenancy, history, draft_probs, rows)
                else:
                    decision = decide_greedily(drafts, rows)
            self._slots.set_cached(work.slot, tenancy, length + decision.accepted)
            work.result = VerifyResult(
                slot=work.slot,
                lease=work.lease,
                outcome=decision.outcome,
                accepted=decision.accepted,
                token_ids=decision.token_ids,
                cached_len=tenancy.cached_len,
                reserved_len=self._slots.reserved_len(tenancy),
                logprobs=_logprobs(rows, decision.token_ids, tenancy.sampling.logprobs),
                prompt_logprobs=work.prompt_logprobs,
                reused_len=tenancy.reused_len,
                drafted=len(drafts),
            )
            tenancy.answered_len, tenancy.answer = length, work.result

    def _result(self, work: Work) -> VerifyResult:
        """The result of a slot on which nothing was decided."""
        tenancy = work.tenancy
        return VerifyResult(
            slot=work.slot,
            lease=work.lease,
            outcome=work.outcome,
            accepted=0,
            token_ids=(),
            cached_len=tenancy.cached_len if tenancy else 0,
            reserved_len=self._slots.reserved_len(tenancy) if tenancy else 0,
            prompt_logprobs=work.prompt_logprobs,
            reused_len=tenancy.reused_len if tenancy else 0,
        )


def _logprobs(rows: list[int] | Tensor, tokens: tuple[int, ...], top: int | None) -> tuple[TokenLogprobs, ...]:
    """Those of the tokens that stand, from their rows' raw logits; none where none are asked for."""
    if top is None:
        return ()
    assert isinstance(rows, Tensor), "whoever is told log-probabilities is not decided by tokens alone"
    return token_logprobs(rows[: len(tokens)], tokens, top)


def _max_model_len(model: ConvertedModel, config: StackConfig) -> int:
    """Most positions of a sequence: what the model knows and the cache holds, or less if configured."""
    most = min(model.config.max_position, config.kv_tokens // config.block_size * config.block_size)
    if config.max_model_len > most:
        raise InvalidInput.field("max_model_len", f"must be at most {most} for this model and kv_tokens")
    return config.max_model_len or most
