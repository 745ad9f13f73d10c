"""Which pair of methods ``auto`` means: the one whose timed steps promise most tokens per second. Imports no torch.

``auto`` changes speed and memory, and never what the model is taken to be: a verifier that is left to it is the model
unquantised (``none``), in whichever dtype is fastest here. Every candidate has real kernels for both roles. What counts
is one sequence, because there decoding is bound by the bytes of the weights, and there a pair gains or loses.

Rates within ``CLOSE`` of the best are taken for equal, because a second of timing tells no more; among them the pair
that keeps fewest bytes is chosen, which is the one copy of weights for both where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qspec.errors import FieldViolation, InvalidInput
from qspec.pair_gain import PairCosts, PairGain, predict_gain
from qspec.quant.expected_acceptance import expected_acceptance
from qspec.quant.methods import (
    AUTO,
    METHODS,
    NO_DRAFTER,
    Backend,
    Choice,
    Role,
    Support,
    choose_draft,
    choose_verify,
)
from qspec.quant.weight_formats import is_held_by

DRAFT_LENGTHS = (1, 2, 4)
"""Draft lengths that a pair is judged by."""
CLOSE = 0.05
_UNQUANTISED = "none"

Kind = tuple[str, str]
"""A step's weight format and activation format."""
StepTimes = Mapping[Kind, Mapping[int, float]]
"""Seconds of a step by its number of rows."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One pair that this machine could run."""

    verify: Choice
    draft: Choice | None
    """None: no drafter."""
    acceptance: float
    """Expected probability that a draft stands; 0 without a drafter."""

    @property
    def names(self) -> tuple[str, str]:
        """Draft and verify method, each as ``METHOD:VARIANT``."""
        return NO_DRAFTER if self.draft is None else _name(self.draft), _name(self.verify)

    @property
    def bits_per_weight(self) -> float:
        """Bits that both together keep per weight."""
        kept = self.verify.variant.bits_per_weight
        if self.draft is None or is_held_by(self.draft.variant.weights, self.verify.variant.weights):
            return kept
        return kept + self.draft.variant.bits_per_weight

    def rows(self) -> dict[Kind, tuple[int, ...]]:
        """The steps that have to be timed."""
        wanted: dict[Kind, tuple[int, ...]] = {kind(self.verify): (1,)}
        if self.draft is not None:
            wanted[kind(self.verify)] = (1, *(length + 1 for length in DRAFT_LENGTHS))
            wanted.setdefault(kind(self.draft), (1,))
        return wanted


@dataclass(frozen=True, slots=True)
class PairChoice:
    """What was chosen, and why."""

    draft: str
    """``METHOD:VARIANT``, or ``off``."""
    verify: str
    reason: str
    """One line for people."""


def candidate_pairs(
    draft: str, verify: str, backend: Backend, *, stored: Mapping[str, str] | None = None
) -> list[Candidate]:
    """The pairs that two methods, either of them ``auto``, can mean; ``InvalidInput`` when there is none.

    ``stored``: the weight formats of layers that the model came with, as for ``choose_verify``.
    """
    verifiers = (
        [choice for choice in _variants([_UNQUANTISED], backend, Role.VERIFY) if choice.variant.row_invariant]
        if verify == AUTO else [choose_verify(verify, backend, stored=stored)]
    )
    found: list[Candidate] = []
    for verifier in verifiers:
        if draft == AUTO:
            drafters: Iterable[Choice | None] = _variants(METHODS, backend, Role.DRAFT)
        else:
            drafters = [choose_draft(draft, backend, verify=verifier)]
        for drafter in drafters:
            if drafter is None:
                found.append(Candidate(verifier, None, 0.0))
                continue
            acceptance = expected_acceptance(drafter.variant, verifier.variant)
            if draft != AUTO:
                found.append(Candidate(verifier, drafter, 0.0 if acceptance is None else acceptance))
            elif acceptance is not None and _may_pay(drafter, verifier):
                found.append(Candidate(verifier, drafter, acceptance))
    if not found:
        problem = f"no drafter with kernels on {backend.value} pays beside {verify}; name one, or 'off'"
        raise InvalidInput(FieldViolation(Role.DRAFT.value, problem))
    return found


def choose_pair(candidates: Sequence[Candidate], times: StepTimes) -> PairChoice:
    """The candidate that promises most; those without times (there was no time for them) are left out.

    The choice among several needs times of at least one. A single candidate needs none.
    """
    if len(candidates) == 1:
        return PairChoice(*candidates[0].names, reason=f"{_shown(candidates[0])}, the only pair with kernels here")
    timed = [(candidate, _gain(candidate, times)) for candidate in candidates if _is_timed(candidate, times)]
    best = max(_rate(gain) for _, gain in timed)
    close = [(candidate, gain) for candidate, gain in timed if _rate(gain) >= (1 - CLOSE) * best]
    chosen, gain = min(close, key=lambda each: (each[0].bits_per_weight, -_rate(each[1])))
    others = [each for each in timed if each[0] is not chosen]
    reason = f"{_shown(chosen)}, for {_rate(gain):.3g} tokens/s of one text ({1 / _plain(chosen, times):.3g} undrafted)"
    if others:
        runner_up, its_gain = max(others, key=lambda each: _rate(each[1]))
        reason += f"; next is {_shown(runner_up)}, for {_rate(its_gain):.3g}"
    return PairChoice(*chosen.names, reason=reason)


def kind(choice: Choice) -> Kind:
    """What a step with a method computes."""
    return choice.variant.weights, choice.variant.activations


def _variants(methods: Iterable[str], backend: Backend, role: Role) -> list[Choice]:
    """Every variant of some methods that has real kernels, in the order of the table."""
    return [
        Choice(name, variant.stored_for(backend), Support.REAL)
        for name in methods
        for variant in METHODS[name].variants
        if variant.on(backend, role) is Support.REAL
    ]


def _may_pay(drafter: Choice, verifier: Choice) -> bool:
    """Whether a draft step could cost less than a verifier's: fewer bytes, or the same with cheaper arithmetic."""
    drafted, verified = drafter.variant, verifier.variant
    return kind(drafter) != kind(verifier) and drafted.bits_per_weight <= verified.bits_per_weight


def _is_timed(candidate: Candidate, times: StepTimes) -> bool:
    return all(set(rows) <= set(times.get(step, ())) for step, rows in candidate.rows().items())


def _plain(candidate: Candidate, times: StepTimes) -> float:
    return times[kind(candidate.verify)][1]


def _gain(candidate: Candidate, times: StepTimes) -> PairGain | float:
    """What drafting promises; for a verifier alone its tokens per second."""
    plain = _plain(candidate, times)
    if candidate.draft is None:
        return 1 / plain
    passes = times[kind(candidate.verify)]
    return predict_gain(
        PairCosts(
            plain_step=plain, draft_step=times[kind(candidate.draft)][1],
            verify_passes=tuple((length, passes[length + 1]) for length in DRAFT_LENGTHS),
        ),
        candidate.acceptance,
    )


def _rate(gain: PairGain | float) -> float:
    """Tokens per second: drafting is never made to lose, since a draft length of 0 is always there."""
    return gain if isinstance(gain, float) else gain.plain_rate * max(gain.speed_up, 1.0)


def _name(choice: Choice) -> str:
    return f"{choice.method}:{choice.variant.name}"


def _shown(candidate: Candidate) -> str:
    draft, verify = candidate.names
    return f"{verify} alone" if candidate.draft is None else f"{draft} drafting for {verify}"
