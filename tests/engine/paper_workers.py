"""Workers whose KV cache is on paper: the verifier's own slots, plans and blocks, with the toy model's tokens.

An entry of the cache is a number that stands for all tokens up to its position, so whoever reads a block of another
text, one that was never written, or one that was written since, is caught by what lies there and not by luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qspec.engine.batch_plan import BatchLimits, BatchPlanner, Work
from qspec.engine.regions import BLOCK_TABLES, SLOT_CACHED, SLOT_LEASES, SLOT_PROMPTS, SLOT_TOKENS
from qspec.engine.slots import SlotTable
from qspec.errors import WorkerLost
from qspec.interfaces import (
    ArenaBackend,
    ArenaDescriptor,
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    StageTimings,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.prefix_hash import prefix_hashes
from tests.toy_model import next_token

VOCAB_SIZE = 97
MAX_MODEL_LEN = 64


class PaperArena:
    """The batch state, in this process's own memory."""

    def __init__(self, slots: int, blocks: int) -> None:
        self._tensors = {
            SLOT_LEASES: torch.zeros(slots, dtype=torch.int64),
            SLOT_CACHED: torch.zeros(slots, dtype=torch.int64),
            SLOT_PROMPTS: torch.zeros(slots, dtype=torch.int64),
            SLOT_TOKENS: torch.zeros(slots, MAX_MODEL_LEN, dtype=torch.int32),
            BLOCK_TABLES: torch.zeros(slots, blocks, dtype=torch.int64),
        }

    def tensor(self, name: str) -> Tensor:
        """One region."""
        return self._tensors[name]


class PaperVerifier:
    """A ``Verifier`` that checks all that it reads and writes."""

    def __init__(
        self, *, max_slots: int = 3, num_blocks: int = 16, block_size: int = 4, max_batch_rows: int = 9, epoch: int = 1,
        prefix_cache: bool = True,
    ) -> None:
        self.arena = PaperArena(max_slots, -(-MAX_MODEL_LEN // block_size))
        self.slots = SlotTable(
            self.arena, num_blocks, block_size, prefix_cache=prefix_cache)  # type: ignore[arg-type]
        self.block_size, self.num_blocks = block_size, num_blocks
        self.draft_rounds = np.zeros(max_slots, dtype=np.int64)
        self._planner = BatchPlanner(self.slots, self.draft_rounds, BatchLimits(
            max_batch_rows=max_batch_rows, max_draft_length=8, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE))
        self._entries: dict[tuple[int, int], int] = {}
        self._salts: dict[int, str] = {}
        arena = ArenaDescriptor(
            backend=ArenaBackend.HOST_SHM, device_uuid="", handle=b"", reference="", size=0, epoch=epoch,
            fingerprint="", regions=())
        self._description = VerifierDescription(
            model="toy", method="none", row_invariant=True, vocab_size=VOCAB_SIZE, vocab_fingerprint="toy",
            max_model_len=min(MAX_MODEL_LEN, num_blocks * block_size), max_slots=max_slots, max_draft_length=8,
            max_batch_rows=max_batch_rows, block_size=block_size, num_blocks=num_blocks, arena=arena, memory=(),
            kernel="paper", draft_quantization="toy", verify_quantization="none", prefix_cache=prefix_cache)
        self.prefill_rows = 0

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._description

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        assert batch.epoch == self._description.epoch
        works = self._planner.plan(batch)
        self._salts.update((admission.lease, admission.cache_salt) for admission in batch.admissions)
        for work in works:
            self._write(work)
        for work in works:
            if work.token_ids and work.tenancy is not None:
                self.check_entries(work.tenancy.blocks, self.slots.history(work.slot, work.end).tolist())
                if work.verification is None:
                    self.slots.set_cached(work.slot, work.tenancy, work.end)
                else:
                    self._decide(work)
        rows = sum(len(work.token_ids) - work.decided_rows for work in works)
        self.prefill_rows += rows
        return VerifyAnswer(
            epoch=batch.epoch, round=batch.round, results=tuple(work.result or self._result(work) for work in works),
            free_blocks=self.slots.free_blocks, timings=StageTimings(), prefill_rows=rows)

    def close(self) -> None:
        """See ``Verifier``."""

    def check_entries(self, blocks: Sequence[int], tokens: Sequence[int]) -> None:
        """Whether the entries of a text are what lies in its blocks."""
        expected = 0
        for position, token in enumerate(tokens):
            expected = hash((expected, token))
            place = blocks[position // self.block_size], position % self.block_size
            assert self._entries.get(place) == expected, f"position {position} of {tokens} is not in block {place[0]}"

    def check_books(self) -> None:
        """Whether every block is held as often as it is in a table, the rest is free, and names are of full blocks."""
        tables = self.arena.tensor(BLOCK_TABLES)
        held = Counter(tables[tables >= 0].tolist())
        blocks = self.slots._blocks
        assert [held[block] for block in range(self.num_blocks)] == list(map(blocks.holders, range(self.num_blocks)))
        assert self.slots.free_blocks == self.num_blocks - len(held)
        for slot, tenancy in self.slots._tenancies.items():
            if self._description.prefix_cache:
                tokens = self.slots.history(slot, tenancy.cached_len).tolist()
                assert tenancy.block_names == prefix_hashes(tokens, self.block_size, self._salts[tenancy.lease])

    def _write(self, work: Work) -> None:
        if not work.token_ids:
            return
        assert work.tenancy is not None
        self.slots.enter_tokens(work.slot, work.start, work.token_ids)
        entry = 0
        for position, token in enumerate(self.slots.history(work.slot, work.end).tolist()):
            entry = hash((entry, token))
            if position >= work.start:
                block = work.tenancy.blocks[position // self.block_size]
                assert self.slots._blocks.holders(block) == 1, "writes into a block of others"
                self._entries[block, position % self.block_size] = entry

    def _decide(self, work: Work) -> None:
        verification, tenancy = work.verification, work.tenancy
        assert verification is not None and tenancy is not None
        text = self.slots.history(work.slot, verification.committed_len).tolist()
        accepted = 0
        while accepted < len(verification.draft_tokens):
            if verification.draft_tokens[accepted] != next_token(text, tenancy.sampling, VOCAB_SIZE):
                break
            text.append(verification.draft_tokens[accepted])
            accepted += 1
        self.slots.set_cached(work.slot, tenancy, len(text))
        text.append(next_token(text, tenancy.sampling, VOCAB_SIZE))
        tokens = tuple(text[verification.committed_len :])
        work.result = self._result(work, accepted=accepted, tokens=tokens, drafted=len(verification.draft_tokens))
        tenancy.answered_len, tenancy.answer = verification.committed_len, work.result

    def _result(
        self, work: Work, *, accepted: int = 0, tokens: tuple[int, ...] = (), drafted: int = 0
    ) -> VerifyResult:
        tenancy = work.tenancy
        return VerifyResult(
            slot=work.slot, lease=work.lease, outcome=work.outcome, accepted=accepted, token_ids=tokens,
            cached_len=tenancy.cached_len if tenancy else 0,
            reserved_len=self.slots.reserved_len(tenancy) if tenancy else 0,
            reused_len=tenancy.reused_len if tenancy else 0, drafted=drafted)


class PaperDrafter:
    """A ``Drafter`` that is wrong at every third position, and checks what it finds in tables and blocks.

    Is gone once it is ``dying``.
    """

    dying = False

    def __init__(
        self, verifier: PaperVerifier, committed_tokens: Callable[[int, int], Sequence[int] | None]
    ) -> None:
        self._verifier, self._committed_tokens = verifier, committed_tokens

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        return DrafterDescription(epoch=verifier.epoch, method="toy", kernel="paper", memory=())

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""

    def close(self) -> None:
        """See ``Drafter``."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        if self.dying:
            raise WorkerLost("killed by the test")
        drafts: dict[int, list[int]] = {}
        arena, size = self._verifier.arena, self._verifier.block_size
        for item in batch.items:
            committed = self._committed_tokens(item.slot, item.lease)
            assert committed is not None
            text, context = list(committed), item.committed_len - 1
            assert int(arena.tensor(SLOT_LEASES)[item.slot]) == item.lease
            assert int(arena.tensor(SLOT_CACHED)[item.slot]) == context
            assert arena.tensor(SLOT_TOKENS)[item.slot, :context].tolist() == text[:context]
            blocks = arena.tensor(BLOCK_TABLES)[item.slot, : -(-context // size)].tolist()
            self._verifier.check_entries(blocks, text[:context])
            while len(text) < item.committed_len + item.draft_length:
                wrong = len(text) % 3 == 0
                text.append((next_token(text, item.sampling, VOCAB_SIZE) + wrong) % VOCAB_SIZE)
            drafts[item.slot] = text[item.committed_len :]
            if item.sampling.needs_draft_probs:
                self._verifier.draft_rounds[item.slot] = batch.round
        return DraftAnswer.answering(batch, drafts, {}, StageTimings())
