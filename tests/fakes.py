"""A verifier and a drafter without a model: all of the protocol, none of the arithmetic.

They keep the whole contract of ``qspec.interfaces`` (leases, committed lengths, blocks, stored answers, epochs) over
the toy model of ``tests.toy_model``, so that the loop, the scheduler and the wire can be tested in microseconds. The
fake arena is real shared memory (a memfd) with two regions, each slot's lease and cached length, and its tokens; the
fake drafter knows nothing but what it reads there, so it works in the same process and in another one.
"""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from qspec.countdown import Countdown
from qspec.early_stop import DraftGate
from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import (
    Admission,
    ArenaBackend,
    ArenaDescriptor,
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    DraftResult,
    MemoryItem,
    PrefillChunk,
    Region,
    RegionWriter,
    Release,
    Sampling,
    SlotOutcome,
    StageTimings,
    TokenLogprobs,
    Verification,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.memory.fd_passing import receive_fds
from qspec.prefix_hash import prefix_hashes
from tests.toy_model import next_token

VOCAB_FINGERPRINT = "toy-vocabulary"
_epochs = itertools.count(1)
_Part = Release | Admission | PrefillChunk | Verification


class FakeArena:
    """Shared memory: ``state[2·slot]`` is a lease, ``state[2·slot + 1]`` a cached length; ``tokens`` are row-major."""

    def __init__(self, fd: int, max_slots: int, max_model_len: int) -> None:
        self._map = mmap.mmap(fd, self.size(max_slots, max_model_len))
        self._view = memoryview(self._map)
        self.state = self._view[: 16 * max_slots].cast("Q")
        self._tokens = self._view[16 * max_slots :].cast("I")
        self._row = max_model_len

    @staticmethod
    def size(max_slots: int, max_model_len: int) -> int:
        """Bytes of the arena."""
        return 16 * max_slots + 4 * max_slots * max_model_len

    def read(self, slot: int) -> list[int]:
        """The cached tokens of a slot."""
        start = slot * self._row
        return list(self._tokens[start : start + self.state[2 * slot + 1]])

    def write(self, slot: int, lease: int, tokens: list[int]) -> None:
        """Replace a slot's lease and cached tokens."""
        start = slot * self._row
        for index, token in enumerate(tokens, start):
            self._tokens[index] = token
        self.state[2 * slot], self.state[2 * slot + 1] = lease, len(tokens)

    def close(self) -> None:
        """Unmap."""
        for view in (self.state, self._tokens, self._view):
            view.release()
        self._map.close()


def fake_logprobs(tokens: Iterable[int], top: int | None) -> tuple[TokenLogprobs, ...]:
    """What a fake verifier tells of tokens: a token is the less probable the larger it is, whatever it follows."""
    if top is None:
        return ()
    best = tuple(range(top))
    return tuple(
        TokenLogprobs(logprob=-(token + 1) / 8, top_token_ids=best, top_logprobs=tuple(-(t + 1) / 8 for t in best))
        for token in tokens
    )


@dataclass(slots=True)
class _Slot:
    """What the fake verifier knows of a slot."""

    lease: int = 0
    held: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    prompt_len: int = 0
    cached: list[int] = field(default_factory=list)
    salt: str = ""
    reused: int = 0
    blocks: int = 0
    undecided: int = 0
    """How often it is still left undecided."""
    answered_len: int = 0
    answer: VerifyResult | None = None


class FakeVerifier:
    """A ``Verifier`` over the toy model. ``batches`` records what it was asked; ``delay_s`` makes every batch late."""

    def __init__(
        self, *, vocab_size: int = 97, num_blocks: int = 64, max_slots: int = 4, block_size: int = 4,
        max_model_len: int = 256, max_draft_length: int = 8, max_batch_rows: int = 64, epoch: int | None = None,
        delay_s: float = 0.0, methods: tuple[str, str] = ("toy", "toy"), prefix_cache: bool = False,
        slow_constraints: int = 0,
    ) -> None:
        """``methods``: what it says of the drafter's and its own. ``prefix_cache``: it knows every text that it was
        ever told, in full blocks; each sequence has blocks of its own for it all the same. ``slow_constraints``: how
        often it leaves a constrained sequence undecided at first; constraints make no other difference."""
        self._arena_fd = os.memfd_create("fake-arena")
        os.ftruncate(self._arena_fd, FakeArena.size(max_slots, max_model_len))
        self.delay_s = delay_s
        self.batches: list[VerifyBatch] = []
        self._slow_constraints = slow_constraints
        self._arena = FakeArena(self._arena_fd, max_slots, max_model_len)
        self._slots = [_Slot() for _ in range(max_slots)]
        self._free_blocks = num_blocks
        regions = (
            Region(name="state", dtype="int64", shape=(max_slots, 2), offset=0, writer=RegionWriter.VERIFIER),
            Region(name="tokens", dtype="int32", shape=(max_slots, max_model_len), offset=16 * max_slots,
                   writer=RegionWriter.VERIFIER),
        )
        arena = ArenaDescriptor(
            backend=ArenaBackend.HOST_SHM, device_uuid="", handle=b"", reference=f"fd:{self._arena_fd}",
            size=FakeArena.size(max_slots, max_model_len), epoch=next(_epochs) if epoch is None else epoch,
            fingerprint="fake", regions=regions,
        )
        self._description = VerifierDescription(
            model="toy", method="none (toy)", row_invariant=True, vocab_size=vocab_size,
            vocab_fingerprint=VOCAB_FINGERPRINT, max_model_len=max_model_len, max_slots=max_slots,
            max_draft_length=max_draft_length, max_batch_rows=max_batch_rows, block_size=block_size,
            num_blocks=num_blocks, arena=arena, memory=(MemoryItem(name="toy", bytes=arena.size, shared=True),),
            kernel="toy", draft_quantization=methods[0], verify_quantization=methods[1], prefix_cache=prefix_cache,
        )
        self._known: set[bytes] = set()

    @property
    def arena_fds(self) -> tuple[int, ...]:
        """What a drafter maps."""
        return (self._arena_fd,)

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._description

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        started = time.perf_counter_ns()
        self._check(batch)
        self.batches.append(batch)
        if self.delay_s:
            time.sleep(self.delay_s)
        results: dict[int, VerifyResult] = {}
        self._prefill_rows = 0
        for release in batch.releases:
            self._release(release)
        for admission in batch.admissions:
            results[admission.slot] = self._admit(admission)
        cached_before = {chunk.slot: len(self._slots[chunk.slot].cached) for chunk in batch.prefill_chunks}
        parts: list[PrefillChunk | Verification] = [*batch.prefill_chunks, *batch.verifications]
        for part in parts:
            earlier = results.get(part.slot)
            if earlier is not None and earlier.outcome is not SlotOutcome.OK:
                continue
            if batch.late and not self._known_already(part):
                results[part.slot] = self._result(part.slot, part.lease, SlotOutcome.LATE)
                continue
            result = self._prefill(part) if isinstance(part, PrefillChunk) else self._decide(part)
            if result.outcome is SlotOutcome.NO_BLOCKS and part.slot in cached_before:
                result = self._undo(part.slot, cached_before[part.slot], result)
            if earlier is not None and earlier.prompt_logprobs and isinstance(part, Verification):
                result = self._slots[part.slot].answer = replace(result, prompt_logprobs=earlier.prompt_logprobs)
            results[part.slot] = result
        total = time.perf_counter_ns() - started
        return VerifyAnswer(
            epoch=batch.epoch, round=batch.round, results=tuple(results.values()), free_blocks=self._free_blocks,
            timings=StageTimings(forward_ns=total, total_ns=total), prefill_rows=self._prefill_rows,
        )

    def close(self) -> None:
        """See ``Verifier``."""
        self._arena.close()
        os.close(self._arena_fd)

    def _check(self, batch: VerifyBatch) -> None:
        about = self._description
        if batch.epoch != about.epoch:
            raise EpochMismatch(f"the verifier is in epoch {about.epoch}, the batch in {batch.epoch}")
        parts: list[_Part] = [
            *batch.releases, *batch.admissions, *batch.prefill_chunks, *batch.verifications
        ]
        if any(not 0 <= part.slot < about.max_slots for part in parts):
            raise ContractViolation(f"slots are 0..{about.max_slots - 1}")
        rows = sum(len(c.token_ids) for c in batch.prefill_chunks)
        rows += sum(1 + len(v.draft_tokens) for v in batch.verifications)
        if rows > about.max_batch_rows:
            raise ContractViolation(f"{rows} rows in a batch, the limit is {about.max_batch_rows}")
        for verification in batch.verifications:
            if len(verification.draft_tokens) > about.max_draft_length:
                raise ContractViolation(f"the longest draft is {about.max_draft_length}")
            if verification.committed_len + len(verification.draft_tokens) > about.max_model_len:
                raise ContractViolation(f"a sequence has at most {about.max_model_len} positions")
        tokens = [t for c in batch.prefill_chunks for t in c.token_ids]
        tokens += [c.next_token for c in batch.prefill_chunks if c.next_token is not None]
        tokens += [t for v in batch.verifications for t in (v.pending_token, *v.draft_tokens)]
        for admission in batch.admissions:
            tokens += [*dict(admission.sampling.logit_bias), *admission.sampling.ending_token_ids]
            tokens += admission.token_ids
            if admission.token_ids and admission.sampling.prompt_logprobs is not None:
                raise ContractViolation("what is told of a prompt is computed, not found")
        if any(not 0 <= token < about.vocab_size for token in tokens):
            raise ContractViolation(f"tokens are 0..{about.vocab_size - 1}")

    def _release(self, release: Release) -> None:
        slot = self._slots[release.slot]
        if slot.held and slot.lease == release.lease:
            self._free_blocks += slot.blocks
            self._slots[release.slot] = _Slot(lease=slot.lease)
            self._arena.write(release.slot, 0, [])

    def _admit(self, admission: Admission) -> VerifyResult:
        slot = self._slots[admission.slot]
        repeated = slot.held and slot.lease == admission.lease
        if not repeated:
            if admission.lease <= slot.lease:
                return self._result(admission.slot, admission.lease, SlotOutcome.STALE)
            self._release(Release(slot=admission.slot, lease=slot.lease))
            self._slots[admission.slot] = _Slot(
                lease=admission.lease, held=True, sampling=admission.sampling, prompt_len=admission.prompt_len,
                undecided=0 if admission.constraint is None else self._slow_constraints)
            self._reuse(admission)
        return self._result(admission.slot, admission.lease, SlotOutcome.OK)

    def _reuse(self, admission: Admission) -> None:
        """Begin with as much as is known, if it is looked for at all."""
        slot, size = self._slots[admission.slot], self._description.block_size
        slot.salt = admission.cache_salt
        if self._description.prefix_cache:
            names = prefix_hashes(admission.token_ids, size, slot.salt)
            known = next((index for index, name in enumerate(names) if name not in self._known), len(names)) * size
            if self._reserve(slot, known):
                slot.cached, slot.reused = list(admission.token_ids[:known]), known
        self._arena.write(admission.slot, slot.lease, slot.cached)

    def _prefill(self, chunk: PrefillChunk) -> VerifyResult:
        slot = self._slots[chunk.slot]
        if not slot.held or slot.lease != chunk.lease or chunk.start > len(slot.cached):
            return self._result(chunk.slot, chunk.lease, SlotOutcome.STALE)
        if chunk.next_token is None and slot.sampling.prompt_logprobs is not None:
            raise ContractViolation("the token behind a chunk is missing")
        if not self._reserve(slot, chunk.start + len(chunk.token_ids)):
            return self._result(chunk.slot, chunk.lease, SlotOutcome.NO_BLOCKS)
        new = chunk.token_ids[len(slot.cached) - chunk.start :]
        slot.cached += new
        self._prefill_rows += len(new)
        self._arena.write(chunk.slot, slot.lease, slot.cached)
        behind = [*chunk.token_ids[1:], *(() if chunk.next_token is None else (chunk.next_token,))]
        told = fake_logprobs(behind[: max(slot.prompt_len - 1 - chunk.start, 0)], slot.sampling.prompt_logprobs)
        return replace(self._result(chunk.slot, chunk.lease, SlotOutcome.OK), prompt_logprobs=told)

    def _known_already(self, part: PrefillChunk | Verification) -> bool:
        """Whether there is nothing to compute."""
        slot = self._slots[part.slot]
        if not slot.held or slot.lease != part.lease:
            return True
        if isinstance(part, PrefillChunk):
            return part.start + len(part.token_ids) <= len(slot.cached) or part.start > len(slot.cached)
        return slot.answered_len == part.committed_len or part.committed_len != len(slot.cached) + 1

    def _undo(self, slot_index: int, cached_len: int, result: VerifyResult) -> VerifyResult:
        """Without blocks for all of it, nothing of the slot's part of the batch is done."""
        slot = self._slots[slot_index]
        self._prefill_rows -= len(slot.cached) - cached_len
        del slot.cached[cached_len:]
        self._arena.write(slot_index, slot.lease, slot.cached)
        return replace(result, cached_len=cached_len)

    def _decide(self, item: Verification) -> VerifyResult:
        slot = self._slots[item.slot]
        if not slot.held or slot.lease != item.lease:
            return self._result(item.slot, item.lease, SlotOutcome.STALE)
        if slot.answer is not None and slot.answered_len == item.committed_len:
            return slot.answer
        if item.committed_len != len(slot.cached) + 1:
            return self._result(item.slot, item.lease, SlotOutcome.STALE)
        if not self._reserve(slot, item.committed_len + len(item.draft_tokens)):
            return self._result(item.slot, item.lease, SlotOutcome.NO_BLOCKS)
        if slot.undecided:
            slot.undecided -= 1
            return self._result(item.slot, item.lease, SlotOutcome.OK)
        text = [*slot.cached, item.pending_token]
        accepted = 0
        for draft in item.draft_tokens:
            if draft != next_token(text, slot.sampling, self._description.vocab_size):
                break
            text.append(draft)
            accepted += 1
        slot.cached = list(text)
        text.append(next_token(text, slot.sampling, self._description.vocab_size))
        self._arena.write(item.slot, slot.lease, slot.cached)
        slot.answer = self._result(
            item.slot, item.lease, SlotOutcome.OK, accepted=accepted, tokens=tuple(text[item.committed_len :]),
            drafted=len(item.draft_tokens),
        )
        slot.answered_len = item.committed_len
        return slot.answer

    def _reserve(self, slot: _Slot, positions: int) -> bool:
        missing = -(-positions // self._description.block_size) - slot.blocks
        if missing > self._free_blocks:
            return False
        if missing > 0:
            self._free_blocks -= missing
            slot.blocks += missing
        return True

    def _result(
        self, slot: int, lease: int, outcome: SlotOutcome, *, accepted: int = 0, tokens: tuple[int, ...] = (),
        drafted: int = 0,
    ) -> VerifyResult:
        state = self._slots[slot]
        if self._description.prefix_cache:
            self._known.update(prefix_hashes(state.cached, self._description.block_size, state.salt))
        logprobs = fake_logprobs(tokens, state.sampling.logprobs)
        return VerifyResult(
            slot=slot, lease=lease, outcome=outcome, accepted=accepted, token_ids=tokens, cached_len=len(state.cached),
            reserved_len=state.blocks * self._description.block_size, logprobs=logprobs, reused_len=state.reused,
            drafted=drafted,
        )


SURE, UNSURE = 0.95, 0.3
"""Confidence of a fake drafter where it is right, and where it is wrong."""


class FakeDrafter:
    """A ``Drafter`` over the toy model, wrong at every ``wrong_every``-th position (0: never).

    Attached at once when a verifier of the same process is given. ``batches`` and ``delay_s`` as for ``FakeVerifier``.
    """

    def __init__(
        self, verifier: FakeVerifier | None = None, *, wrong_every: int = 3, vocab_size: int = 97, delay_s: float = 0.0
    ) -> None:
        self.delay_s = delay_s
        self.batches: list[DraftBatch] = []
        self._wrong_every = wrong_every
        self._vocab_size = verifier.describe().vocab_size if verifier is not None else vocab_size
        self._arena: FakeArena | None = None
        self._epoch = 0
        if verifier is not None:
            self.attach(verifier.describe())

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        if verifier.vocab_fingerprint != VOCAB_FINGERPRINT:
            raise InvalidInput.field("draft_model", "drafter and verifier have different vocabularies")
        self.close()
        max_slots, max_model_len = verifier.arena.regions[1].shape
        kind, _, where = verifier.arena.reference.partition(":")
        fd = os.dup(int(where)) if kind == "fd" else receive_fds(Path(where), timeout=5.0)[0]
        try:
            self._arena = FakeArena(fd, max_slots, max_model_len)
        finally:
            os.close(fd)
        self._epoch = verifier.epoch
        return DrafterDescription(epoch=self._epoch, method="toy", kernel="toy", memory=())

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""
        if epoch == self._epoch:
            self.close()

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        if self._arena is None:
            raise EpochMismatch("the drafter is not attached to an arena")
        if batch.epoch != self._epoch:
            raise EpochMismatch(f"the drafter is in epoch {self._epoch}, the batch in {batch.epoch}")
        started, late = time.perf_counter_ns(), Countdown(batch.time_left_s)
        self.batches.append(batch)
        if self.delay_s:
            time.sleep(self.delay_s)
        results = tuple(self._draft_one(self._arena, item, late) for item in batch.items)
        total = time.perf_counter_ns() - started
        return DraftAnswer(
            epoch=batch.epoch, round=batch.round, results=results,
            timings=StageTimings(forward_ns=total, total_ns=total),
        )

    def close(self) -> None:
        """See ``Drafter``."""
        if self._arena is not None:
            self._arena.close()
        self._arena, self._epoch = None, 0

    def _draft_one(self, arena: FakeArena, item: DraftItem, late: Countdown) -> DraftResult:
        lease, cached_len = arena.state[2 * item.slot], arena.state[2 * item.slot + 1]
        if lease != item.lease or cached_len != item.committed_len - 1:
            return DraftResult(slot=item.slot, lease=item.lease, outcome=SlotOutcome.STALE, draft_tokens=())
        text = [*arena.read(item.slot), item.pending_token]
        gate = DraftGate(item.early_stop)
        while len(text) < item.committed_len + item.draft_length and not gate.ended and not late.over:
            wrong = self._wrong_every and len(text) % self._wrong_every == 0
            if not gate.admits(UNSURE if wrong else SURE):
                break
            token = next_token(text, item.sampling, self._vocab_size)
            text.append((token + 1) % self._vocab_size if wrong else token)
        return DraftResult.answering(item, text[item.committed_len :], gate.confidences)
