"""The seam between the decoding loop and the two workers.

The loop (``qspec.speculation``) sees a ``Drafter`` and a ``Verifier`` and does not know whether they run in its own
process (``qspec.engine``) or behind gRPC (``qspec.rpc.remote``); both pass the contract tests in ``tests/contract``.
Everything here is plain data: no tensors, no protobuf, and nothing that imports torch, so that the coordinator starts
quickly. One batch per call, as on the wire (``protos/qspec/v1``), where every field is described. What workers say of
themselves beforehand is in ``qspec.worker_description``.

A sequence's *committed* tokens are ``c[0..L-1]``; the KV cache holds positions ``0..L-2``; ``c[L-1]`` is *pending*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qspec.constraint import Constraint
from qspec.sampling_options import AcceptanceRule as AcceptanceRule
from qspec.sampling_options import Sampling as Sampling
from qspec.worker_description import ArenaBackend as ArenaBackend
from qspec.worker_description import ArenaDescriptor as ArenaDescriptor
from qspec.worker_description import DrafterDescription as DrafterDescription
from qspec.worker_description import MemoryItem as MemoryItem
from qspec.worker_description import Region as Region
from qspec.worker_description import RegionWriter as RegionWriter
from qspec.worker_description import VerifierDescription as VerifierDescription

Progress = Callable[[str, float | None], None]
"""Told what is being done, and the share of it that is done (0…1; None: unknown)."""


def unwatched(_what: str, _share: float | None) -> None:
    """Progress that nobody watches."""


class SlotOutcome(Enum):
    """What became of one slot's part of a batch."""

    OK = "ok"
    STALE = "stale"
    NO_BLOCKS = "no_blocks"
    DEAD_END = "dead_end"
    """Its tokens stand, but the constraint leaves none to follow them."""
    LATE = "late"
    """The batch's time was over before its turn came; nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimings:
    """Where a worker's time went, in nanoseconds."""

    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0
    total_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStop:
    """Leave to end a draft before its length, by distributions and submitted tokens alone (``qspec.early_stop``)."""

    least_drawn: float
    """No token is drawn when the draft would stand as a whole with a smaller chance than this; 0 draws every one."""
    least_fed: float
    """The last token is not fed for a next one when the draft stands with a smaller chance than this."""
    intercept: float
    """What a confidence is worth: chance = sigmoid(intercept + slope · logit(confidence))."""
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftItem:
    """One sequence to draft ``draft_length`` (≥ 1) tokens for, or fewer where ``early_stop`` allows it."""

    slot: int
    lease: int
    committed_len: int
    pending_token: int
    draft_length: int
    sampling: Sampling
    early_stop: EarlyStop | None = None
    after_round: int = 0
    """Draft from where the verifier's decisions of this round leave the sequence, once they are in the arena; committed
    length and pending token are not known yet. 0: they are."""
    end_len: int = 0
    """With ``after_round``: committed length at which the text ends at the latest; no tokens are drafted that it has no
    room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftBatch:
    """One draft call."""

    epoch: int
    round: int
    items: tuple[DraftItem, ...]
    time_left_s: float | None = None
    """Seconds from the call for which anybody may still want the drafts; no step is begun behind them. None: no limit.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftResult:
    """The drafted tokens of one sequence (``STALE``: none)."""

    slot: int
    lease: int
    outcome: SlotOutcome
    draft_tokens: tuple[int, ...]
    confidences: tuple[float, ...] = ()
    """Under ``early_stop``: largest probability of each distribution that was computed; at most one was not drawn from.
    """

    @classmethod
    def answering(
        cls, item: DraftItem, draft_tokens: Sequence[int] | None, confidences: Sequence[float] = ()
    ) -> DraftResult:
        """The result of ``item``; None for ``draft_tokens`` where it is stale."""
        return cls(
            slot=item.slot,
            lease=item.lease,
            outcome=SlotOutcome.STALE if draft_tokens is None else SlotOutcome.OK,
            draft_tokens=tuple(draft_tokens or ()),
            confidences=tuple(confidences),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftAnswer:
    """The answer to one draft call, results in the order of the items."""

    epoch: int
    round: int
    results: tuple[DraftResult, ...]
    timings: StageTimings

    @classmethod
    def answering(
        cls, batch: DraftBatch, draft_tokens: Mapping[int, Sequence[int]], confidences: Mapping[int, Sequence[float]],
        timings: StageTimings,
    ) -> DraftAnswer:
        """The answer to ``batch``; ``draft_tokens`` and ``confidences`` by slot, items without tokens are stale."""
        results = tuple(
            DraftResult.answering(item, draft_tokens.get(item.slot), confidences.get(item.slot, ()))
            for item in batch.items
        )
        return cls(epoch=batch.epoch, round=batch.round, results=results, timings=timings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A slot that is given back."""

    slot: int
    lease: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A sequence that takes a slot; ``lease`` is larger than any before in that slot."""

    slot: int
    lease: int
    sampling: Sampling
    prompt_len: int = 0
    """Leading tokens that were not generated (after a recovery, the prefilled tokens are more than those)."""
    constraint: Constraint | None = None
    """What the generated tokens have to make."""
    token_ids: tuple[int, ...] = ()
    """Committed tokens from the first on, the pending one left out, for the verifier to find entries that it has; none:
    it looks for none. Whoever is told ``prompt_logprobs`` gives none: they come of rows that are computed."""
    cache_salt: str = ""
    """Entries are shared between tenancies of the same salt only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """Committed tokens to enter at positions ``start…``; ``start`` is at most the slot's cached length.

    Those at positions that are cached already are passed over.
    """

    slot: int
    lease: int
    start: int
    token_ids: tuple[int, ...]
    next_token: int | None = None
    """The token behind them, for a tenancy that is told ``prompt_logprobs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A sequence to decide on; positions ``0..committed_len-2`` must be cached, or become so in the same batch.

    A verifier may leave it undecided (``OK`` and no tokens) while it prepares for the tenancy's constraint; it is asked
    again then, with the same committed length.
    """

    slot: int
    lease: int
    committed_len: int
    pending_token: int
    draft_tokens: tuple[int, ...]
    awaited_drafts: int = 0
    """Most drafts to take from the arena, in the place of ``draft_tokens``, once the drafter has left those of the
    batch's round there."""
    after_round: int = 0
    """Go on from where this round, the verifier's last one, left the sequence: committed length and pending token are
    not known yet. Left undecided (``OK`` and no tokens) if nothing was decided then. 0: they are known."""
    end_len: int = 0
    """With ``after_round``: committed length at which the text ends at the latest; left undecided if it has, and drafts
    beyond are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyBatch:
    """One verify call, applied in the order releases, admissions, prefill chunks, verifications."""

    epoch: int
    round: int
    releases: tuple[Release, ...] = ()
    admissions: tuple[Admission, ...] = ()
    prefill_chunks: tuple[PrefillChunk, ...] = ()
    verifications: tuple[Verification, ...] = ()
    time_left_s: float | None = None
    """Seconds from the call for which anybody may still want the answer. Behind them whatever would have to be computed
    is ``LATE``; releases, admissions and stored answers are as ever. None: no limit."""

    @property
    def late(self) -> bool:
        """Whether nobody wants to have anything computed."""
        return self.time_left_s is not None and self.time_left_s <= 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How probable the model found a token: natural logarithms of its own distribution (``qspec.token_logprobs``)."""

    logprob: float
    top_token_ids: tuple[int, ...] = ()
    """The most probable ones in its place, most probable first."""
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What became of one slot; ``token_ids`` are the accepted drafts, then the recovered or bonus token.

    ``cached_len`` is the number of valid cached positions afterwards (L' - 1 for a verified sequence of new committed
    length L'), ``reserved_len`` the number of positions that have blocks. ``logprobs``: one for each of ``token_ids``
    where they are asked for. ``prompt_logprobs``: those of the prompt tokens behind the prefilled ones. ``reused_len``:
    positions whose entries were there already when the tenancy began. ``drafted``: drafts that were decided on.
    """

    slot: int
    lease: int
    outcome: SlotOutcome
    accepted: int
    token_ids: tuple[int, ...]
    cached_len: int
    reserved_len: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    reused_len: int = 0
    drafted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyAnswer:
    """The answer to one verify call: one result per slot named in admissions, chunks or verifications."""

    epoch: int
    round: int
    results: tuple[VerifyResult, ...]
    free_blocks: int
    timings: StageTimings
    prefill_rows: int = 0
    """Rows that were computed for prefill chunks."""
    waited_ns: int = 0
    """Nanoseconds in which it waited for awaited drafts; they are not in ``timings``."""
    idle_ns: int = 0
    """Nanoseconds from the end of the call before to the beginning of this one."""


class Drafter(Protocol):
    """Proposes tokens. Stateless but for the attached arena: everything it needs to know comes with each batch.

    Raises ``EpochMismatch`` for a batch of another epoch, ``ContractViolation`` for what the protocol forbids,
    ``WorkerLost`` when its process is gone or late.
    """

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """Map the verifier's arena, in place of an earlier one; refuses another vocabulary or fingerprint."""
        ...

    def detach(self, epoch: int) -> None:
        """Unmap the arena; returns when the memory is no longer used."""
        ...

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """Draft for a batch of sequences."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Verifier(Protocol):
    """Owns weights and KV blocks, and decides on every token.

    A ``Verification`` repeated with the same (lease, committed length) gets the stored answer. Raises as ``Drafter``.
    """

    def describe(self) -> VerifierDescription:
        """Model, formats, arena, epoch and limits."""
        ...

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """Apply one batch."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...
