"""What a round asks of the verifier: who is decided on, who is admitted, how much of which prompt is entered.

A round is planned before its drafts are chosen, because how long they may be depends on what else is in it, and becomes
a batch once they are there. Everything here is arithmetic over the sequences in slots; nothing is called or changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qspec.cost_table import CostTable
from qspec.draft_blocks import Holding, caps_within_blocks
from qspec.interfaces import Admission, PrefillChunk, Release, Verification, VerifierDescription, VerifyBatch
from qspec.prefill_share import prefill_rows
from qspec.sequence import Sequence as Text
from qspec.slot_ledger import SlotLedger


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Who takes part in a round, oldest first."""

    about: VerifierDescription
    texts: tuple[Text, ...]
    """All sequences in slots but those that wait for others to enter what they begin with."""
    running: int
    """Sequences in slots."""
    prefill_rows: int
    """Most rows of prompts to enter."""
    spare_blocks: int
    """KV blocks that are left when every sequence has what it needs without drafts; below 0 some will lack one."""
    after_round: int = 0
    """The round before, where it is not known yet what that decides; else 0."""
    undecided: Mapping[int, int] = field(default_factory=dict)
    """Most tokens that it commits, by slot."""

    @classmethod
    def of(
        cls, ledger: SlotLedger, about: VerifierDescription, costs: CostTable, max_prefill_s: float,
        before: VerifyBatch | None = None,
    ) -> RoundPlan:
        """The plan for the sequences in slots; ``before``: what was asked in the round before, if nobody knows yet.

        ``max_prefill_s``: what entering prompts may add to the round, by these ``costs``, where other texts go on.
        """
        held_back = ledger.sharing.held_back(ledger.running)
        texts = tuple(
            text for text in ledger.running
            if text.slot not in held_back and not (before is not None and ends_for_sure(text, about)))
        ready = sum(text.ready for text in texts)
        rows = prefill_rows(
            [(text.cached_len, text.missing) for text in texts if text.missing], about.max_batch_rows - ready, costs,
            max_prefill_s if ready else math.inf)
        return cls(
            about=about, texts=texts, running=len(ledger.running), prefill_rows=rows,
            spare_blocks=ledger.unclaimed_blocks, after_round=0 if before is None else before.round,
            undecided={} if before is None else most_committed(before))

    @property
    def ahead(self) -> bool:
        """Whether the round is asked for before the one before is answered."""
        return bool(self.after_round)

    @property
    def deadline(self) -> float | None:
        """When nobody wants the round's outcome any more; None: never, or there is nobody anyway."""
        return latest_deadline(self.texts)

    @property
    def drafting(self) -> list[Text]:
        """Those that can be drafted for."""
        return [text for text in self.texts if text.admitted and text.ready and not text.undecided]

    @property
    def joining(self) -> int:
        """Texts whose prompts are not at their ends after this round."""
        left, joining = self.prefill_rows, 0
        for text in self.texts:
            joining += text.missing > left
            left -= min(text.missing, left)
        return joining

    @property
    def draft_caps(self) -> list[int]:
        """Most tokens to draft for each of ``drafting``."""
        holdings = [
            Holding(len(text.tokens) + self.undecided.get(text.slot, 0), text.reserved_len, self._cap(text))
            for text in self.drafting]
        return caps_within_blocks(holdings, self.spare_blocks, self.about.block_size)

    def _cap(self, text: Text) -> int:
        """Most tokens that are worth drafting: a round makes one token anyway; rows and positions are limited.

        Every sequence has its share of the rows, so that drafts never keep a prompt from being entered.
        """
        least = 1 if self.ahead else 0  # is committed before
        room = self.about.max_model_len - len(text.tokens) - least
        rows = self.about.max_batch_rows // self.running - 1
        return max(min(text.remaining - least - 1, self.about.max_draft_length, room, rows), 0)

    def batch(
        self, drafts: Mapping[int, tuple[int, ...]], *, number: int, releases: Sequence[Release],
        awaited: Mapping[int, int] = MappingProxyType({}),
    ) -> VerifyBatch:
        """Round ``number``, within the verifier's limit of rows; ``drafts`` by slot, or how many are ``awaited``."""
        admissions, chunks, verifications = [], [], []
        rows, entering = self.about.max_batch_rows, self.prefill_rows
        rows -= sum(
            1 + len(drafts.get(text.slot, ())) + awaited.get(text.slot, 0) for text in self.texts if text.ready)
        for text in self.texts:
            if not text.admitted:
                admissions.append(self._admission(text))
            if not text.ready:
                chunk = self._chunk(text, max(min(rows, entering), 0))
                if chunk.token_ids:
                    chunks.append(chunk)
                rows -= len(chunk.token_ids)
                entering -= len(chunk.token_ids)
                if chunk.start + len(chunk.token_ids) < len(text.tokens) - 1 or rows < 1:
                    continue
                rows -= 1
            verifications.append(Verification(
                slot=text.slot, lease=text.lease, committed_len=len(text.tokens), pending_token=text.tokens[-1],
                draft_tokens=drafts.get(text.slot, ()), awaited_drafts=awaited.get(text.slot, 0),
                after_round=self.after_round, end_len=self.end_len(text)))
        return VerifyBatch(
            epoch=self.about.epoch, round=number, releases=tuple(releases), admissions=tuple(admissions),
            prefill_chunks=tuple(chunks), verifications=tuple(verifications))

    def end_len(self, text: Text) -> int:
        """Committed length at which a text ends at the latest, where its length is not known; else 0."""
        return min(len(text.tokens) + text.remaining, self.about.max_model_len) if self.ahead else 0

    def _admission(self, text: Text) -> Admission:
        return Admission(
            slot=text.slot, lease=text.lease, sampling=text.tenancy_sampling, prompt_len=text.prompt_len,
            constraint=text.constraint, token_ids=text.reusable_tokens if self.about.prefix_cache else (),
            cache_salt=text.cache_salt)

    def _chunk(self, text: Text, most: int) -> PrefillChunk:
        """The next tokens to enter, at most so many; perhaps none."""
        start = text.cached_len
        end = min(len(text.tokens) - 1, start + most)
        return PrefillChunk(
            slot=text.slot, lease=text.lease, start=start, token_ids=tuple(text.tokens[start:end]),
            next_token=text.token_behind(end))


def most_committed(batch: VerifyBatch) -> dict[int, int]:
    """Most tokens that a batch commits, by slot."""
    return {v.slot: 1 + max(v.awaited_drafts, len(v.draft_tokens)) for v in batch.verifications}


def ends_for_sure(text: Text, about: VerifierDescription) -> bool:
    """Whether a round that decides on the text is its last one."""
    return min(text.remaining, about.max_model_len - len(text.tokens)) <= 1


def goes_on(texts: Sequence[Text], before: VerifyBatch, about: VerifierDescription) -> bool:
    """Whether another round like the one ``before`` is of use, whatever comes of that.

    So all ``texts`` are decided on there, one of them at least may go on, and no constraint may end any.
    """
    asked = {(verification.slot, verification.lease) for verification in before.verifications}
    return not (before.admissions or before.prefill_chunks) and not all(
        ends_for_sure(text, about) for text in texts) and all(
        (text.slot, text.lease) in asked and text.ready and not text.undecided and text.constraint is None
        for text in texts)


def latest_deadline(texts: Sequence[Text]) -> float | None:
    """The last of all deadlines, if each of the texts has one."""
    found = [text.deadline for text in texts if text.deadline is not None]
    return max(found) if found and len(found) == len(texts) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """What a verify pass computes, as its batch asks for it."""

    decided: int
    """Rows that are decided on."""
    context: int
    """Cached positions of the sequences that they are of, together."""
    entered: int
    """Rows that enter prompts."""
    attended: int
    """Cached positions that those attend to, row by row."""

    @classmethod
    def of(cls, batch: VerifyBatch) -> BatchRows:
        """The rows of a batch."""
        return cls(
            decided=sum(1 + len(verification.draft_tokens) for verification in batch.verifications),
            context=sum(verification.committed_len - 1 for verification in batch.verifications),
            entered=sum(len(chunk.token_ids) for chunk in batch.prefill_chunks),
            attended=sum(
                sum(range(chunk.start, chunk.start + len(chunk.token_ids))) for chunk in batch.prefill_chunks))
