"""Workers that take no time but simulated time: what a call costs, and which drafts stand, is drawn from a model.

They stand behind the loop's real interfaces, so that a simulation runs the real rounds, the real scheduling order, the
real warm-up and the real controller of the draft lengths. Tokens are all alike; only their number means anything. The
clock moves when a worker works, and between rounds by what the coordinator itself takes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from qspec.cost_table import CalibratedCosts, CostTable
from qspec.early_stop import DraftGate, sigmoid
from qspec.interfaces import (
    ArenaBackend,
    ArenaDescriptor,
    DraftAnswer,
    DraftBatch,
    DrafterDescription,
    DraftItem,
    DraftResult,
    SlotOutcome,
    StageTimings,
    Verification,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.round_batch import BatchRows


class VirtualClock:
    """Seconds since the start of the simulation."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What calls cost: a cost table, and how far single calls are from it."""

    costs: CalibratedCosts
    noise: float = 0.03
    """Standard deviation of the logarithm of a call's time."""
    outliers: float = 0.002
    """Share of calls that something else delays."""
    outlier_factor: float = 10.0
    draft_drift: Callable[[float], float] = lambda now: 1.0
    """Factor on draft calls over time."""
    verify_drift: Callable[[float], float] = lambda now: 1.0
    """Factor on verify passes over time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceModel:
    """Which drafts stand.

    Every token has a difficulty of its own; a sequence's mean acceptance is drawn around ``mean``, and the drafter sees
    a token's difficulty as well as ``insight`` says.
    """

    mean: float = 0.8
    spread: float = 0.5
    """Standard deviation between sequences, of the logit."""
    difficulty: float = 1.5
    """Standard deviation between tokens of a sequence, of the logit."""
    insight: float = 0.5
    """Correlation of what the confidence shows with the difficulty, 0…1."""
    drift: Callable[[float], float] | None = None
    """Mean acceptance over time, in the place of ``mean``."""

    def chance(self, now: float, sequence: float, token: float) -> float:
        """Chance that a draft stands, for a sequence and a token so many standard deviations from the mean."""
        mean = self.mean if self.drift is None else self.drift(now)
        if mean <= 0.0 or mean >= 1.0:
            return mean
        return sigmoid(_centre(mean, self.spread, self.difficulty) + self.spread * sequence + self.difficulty * token)


def _centre(mean: float, *deviations: float) -> float:
    """Logit whose sigmoid has the wanted mean under normal deviations (probit approximation of the logistic)."""
    variance = sum(deviation**2 for deviation in deviations)
    return math.log(mean / (1 - mean)) * math.sqrt(1 + math.pi * variance / 8)


@dataclass(slots=True)
class _Tenancy:
    lease: int = -1
    cached: int = 0
    blocks: int = 0
    stands: list[bool] = field(default_factory=list)
    """Whether the tokens drafted in this round stand."""
    source: random.Random = field(default_factory=random.Random)
    sequence: float = 0.0
    """How well it can be drafted, in standard deviations."""
    _traits: list[tuple[float, float, float]] = field(default_factory=list)

    def traits(self, position: int) -> tuple[float, float, float]:
        """Difficulty, what hides it, and luck at a position: the same however its drafts are laid out."""
        while len(self._traits) <= position:
            self._traits.append((self.source.gauss(0.0, 1.0), self.source.gauss(0.0, 1.0), self.source.random()))
        return self._traits[position]


class SimulatedPair:
    """A verifier and a drafter; each is one of the loop's interfaces (``verifier``, ``drafter``)."""

    def __init__(
        self, machine: Machine, acceptance: AcceptanceModel, *, slots: int, longest: int, seed: int,
        clock: VirtualClock, max_model_len: int = 4096, max_batch_rows: int = 1024, num_blocks: int = 1 << 16,
    ) -> None:
        self.machine, self.acceptance, self.clock = machine, acceptance, clock
        self.tenancies = [_Tenancy() for _ in range(slots)]
        self.costs = CostTable(machine.costs)
        self.draft_rounds = self.rounds = 0
        self.blocks = num_blocks
        self.token = 1
        """What is drafted and decided, always."""
        self._seed, self._random, self._tenants = seed, random.Random(seed), 0
        arena = ArenaDescriptor(
            backend=ArenaBackend.HOST_SHM, device_uuid="", handle=b"", reference="", size=0, epoch=1, fingerprint="",
            regions=())
        self.description = VerifierDescription(
            model="simulated", method="simulated", row_invariant=True, vocab_size=2, vocab_fingerprint="",
            max_model_len=max_model_len, max_slots=slots, max_draft_length=longest, max_batch_rows=max_batch_rows,
            block_size=16, num_blocks=num_blocks, arena=arena, memory=(), kernel="simulated",
            draft_quantization="simulated", verify_quantization="simulated")
        self.verifier, self.drafter = SimulatedVerifier(self), SimulatedDrafter(self)

    def tenancy(self, slot: int) -> _Tenancy:
        """What a slot holds."""
        return self.tenancies[slot]

    def enter(self, slot: int, lease: int) -> None:
        """A sequence takes a slot; its traits depend on how many came before, not on what else was drawn."""
        self._tenants += 1
        source = random.Random(self._seed * 1_000_003 + self._tenants)
        self.tenancies[slot] = _Tenancy(lease=lease, sequence=source.gauss(0.0, 1.0), source=source)

    def take(self, seconds: float, drift: Callable[[float], float]) -> StageTimings:
        """Work for about ``seconds``."""
        seconds *= drift(self.clock.now) * math.exp(self._random.gauss(0.0, self.machine.noise))
        if self._random.random() < self.machine.outliers:
            seconds *= self.machine.outlier_factor
        self.clock.advance(seconds)
        return StageTimings(total_ns=int(seconds * 1e9))


class SimulatedDrafter:
    """A ``Drafter`` whose tokens stand with the chances of the model, and that ends drafts by the real rule."""

    def __init__(self, pair: SimulatedPair) -> None:
        self._pair = pair

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        return DrafterDescription(epoch=verifier.epoch, method="simulated", kernel="simulated", memory=())

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""

    def close(self) -> None:
        """See ``Drafter``."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        pair = self._pair
        steps = []
        results = []
        for item in batch.items:
            gate = DraftGate(item.early_stop)
            stands = self._stands(item, gate)
            pair.tenancy(item.slot).stands = stands
            steps.append(max(len(gate.confidences), len(stands)))
            results.append(DraftResult.answering(item, [pair.token] * len(stands), gate.confidences))
        fed = [sum(count > step for count in steps) for step in range(max(steps))]
        context = sum(item.committed_len - 1 for item in batch.items)
        pair.draft_rounds += 1
        timings = pair.take(pair.costs.draft_seconds(fed, context), pair.machine.draft_drift)
        return DraftAnswer(epoch=batch.epoch, round=batch.round, results=tuple(results), timings=timings)

    def _stands(self, item: DraftItem, gate: DraftGate) -> list[bool]:
        """Whether each token that is drafted stands, up to where the rule ends the draft."""
        pair, tenancy = self._pair, self._pair.tenancy(item.slot)
        model = pair.acceptance
        stands: list[bool] = []
        while len(stands) < item.draft_length and not gate.ended:
            token, hidden, luck = tenancy.traits(item.committed_len + len(stands))
            seen = model.insight * token + math.sqrt(1 - model.insight**2) * hidden
            if not gate.admits(sigmoid(1.0 + 2.0 * seen)):
                break
            stands.append(luck < model.chance(pair.clock.now, tenancy.sequence, token))
        return stands


class SimulatedVerifier:
    """A ``Verifier`` that keeps count of leases, positions and blocks, and accepts by chance."""

    def __init__(self, pair: SimulatedPair) -> None:
        self._pair = pair

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._pair.description

    def close(self) -> None:
        """See ``Verifier``."""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        pair = self._pair
        results: dict[int, VerifyResult] = {}
        for release in batch.releases:
            pair.blocks += pair.tenancy(release.slot).blocks
            pair.tenancies[release.slot] = _Tenancy()
        for admission in batch.admissions:
            pair.enter(admission.slot, admission.lease)
            results[admission.slot] = self._result(admission.slot, SlotOutcome.OK)
        rows = BatchRows.of(batch)
        for chunk in batch.prefill_chunks:
            enough = self._reserve(chunk.slot, chunk.start + len(chunk.token_ids))
            if enough:
                pair.tenancy(chunk.slot).cached = chunk.start + len(chunk.token_ids)
            results[chunk.slot] = self._result(chunk.slot, SlotOutcome.OK if enough else SlotOutcome.NO_BLOCKS)
        for item in batch.verifications:
            if results.get(item.slot, self._result(item.slot, SlotOutcome.OK)).outcome is SlotOutcome.OK:
                results[item.slot] = self._decide(item)
        pair.rounds += bool(batch.verifications)
        timings = StageTimings()
        if rows.decided or rows.entered:
            timings = pair.take(self._seconds(rows), pair.machine.verify_drift)
        return VerifyAnswer(
            epoch=batch.epoch, round=batch.round, results=tuple(results.values()), free_blocks=pair.blocks,
            timings=timings, prefill_rows=rows.entered)

    def _seconds(self, rows: BatchRows) -> float:
        """What a pass costs; a row of a prompt costs what any row does, unless the machine says otherwise."""
        costs = self._pair.costs
        if not costs.prefill_row.known:
            return costs.verify_seconds(rows.decided + rows.entered, rows.context)
        return costs.verify_seconds(rows.decided, rows.context) + costs.prefill_seconds(rows.entered, rows.attended)

    def _decide(self, item: Verification) -> VerifyResult:
        tenancy = self._pair.tenancy(item.slot)
        if not self._reserve(item.slot, item.committed_len + len(item.draft_tokens)):
            return self._result(item.slot, SlotOutcome.NO_BLOCKS)
        stands = tenancy.stands[: len(item.draft_tokens)]
        accepted = next((index for index, stood in enumerate(stands) if not stood), len(stands))
        tenancy.cached = item.committed_len + accepted
        return self._result(item.slot, SlotOutcome.OK, accepted, (self._pair.token,) * (accepted + 1),
                            len(item.draft_tokens))

    def _reserve(self, slot: int, positions: int) -> bool:
        tenancy = self._pair.tenancy(slot)
        missing = -(-positions // self._pair.description.block_size) - tenancy.blocks
        if missing > self._pair.blocks:
            return False
        self._pair.blocks -= max(missing, 0)
        tenancy.blocks += max(missing, 0)
        return True

    def _result(
        self, slot: int, outcome: SlotOutcome, accepted: int = 0, token_ids: tuple[int, ...] = (), drafted: int = 0
    ) -> VerifyResult:
        tenancy = self._pair.tenancy(slot)
        return VerifyResult(
            slot=slot, lease=tenancy.lease, outcome=outcome, accepted=accepted, token_ids=token_ids,
            cached_len=tenancy.cached, reserved_len=tenancy.blocks * self._pair.description.block_size,
            drafted=drafted)
