"""Which modules cost most acceptance when a method quantises them: each one alone, all others left to the verifier.

What a whole model loses is more than the sum of these losses tells (errors meet), and the order of the modules is what
one needs to spend a few more bits well: so the module whose loss is largest is named first, and what leaving the worst
few to the verifier's method wins is not added up but measured, with every other module quantised.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from qspec.errors import InvalidInput
from qspec.evaluation.agreement import Agreement
from qspec.evaluation.scoring import ScoredModel, numbers
from qspec.interfaces import Progress
from qspec.models.decoder import Linear
from qspec.quant.methods import METHODS, Choice

_LARGEST_SHARE_LEFT = 0.5
"""Modules are named for an override until these make up this share of all losses,"""
_MOST_OVERRIDES = 4
"""or until they are so many."""
_VERIFIER_READY, _METHOD_READY = 0.05, 0.15
"""About the shares of the work at which the two sets of weights are there."""


class Grain(Enum):
    """What counts as one module."""

    MATRIX = "matrix"
    LAYER = "layer"
    KIND = "kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCost:
    """One module alone in the method, and all others as the verifier has them."""

    glob: str
    """Matches the module's linear layers, and no others, in ``fnmatch``'s language."""
    matrices: int
    """How many linear layers these are."""
    agreement: Agreement
    bytes_saved: int
    """What a pass reads less than with the verifier's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The costs of all modules, the largest loss of acceptance first, and what the first few win."""

    method: str
    against: str
    costs: tuple[ModuleCost, ...]
    whole: Agreement
    """With every module in the method."""
    worst: tuple[ModuleCost, ...]
    """The modules that overrides would leave to the verifier's method."""
    relieved: Agreement
    """With every module in the method but those."""

    @property
    def overrides(self) -> str:
        """``GLOB=METHOD`` for each of the worst, comma-separated."""
        return ",".join(f"{cost.glob}={self.against}" for cost in self.worst)

    @property
    def bytes_given_up(self) -> int:
        """What a pass reads more with the overrides than without."""
        return sum(cost.bytes_saved for cost in self.worst)


def full_name(choice: Choice) -> str:
    """``METHOD``, or ``METHOD:VARIANT`` where there are several: what chooses this variant wherever it is written."""
    several = len(METHODS[choice.method].variants) > 1
    return f"{choice.method}:{choice.variant.name}" if several else choice.method


def module_globs(layer_names: Sequence[str], grain: Grain) -> dict[str, tuple[str, ...]]:
    """Glob to the linear layers that it matches, in the order of their use; each layer belongs to exactly one."""
    globs: dict[str, list[str]] = {}
    for name in layer_names:
        match = re.fullmatch(r"(layers\.\d+)\.(\w+)", name)
        glob = name
        if match and grain is Grain.LAYER:
            glob = f"{match[1]}.*"
        elif match and grain is Grain.KIND:
            glob = f"layers.*.{match[2]}"
        globs.setdefault(glob, []).append(name)
    for glob, names in globs.items():
        assert fnmatch.filter(layer_names, glob) == names
    return {glob: tuple(names) for glob, names in globs.items()}


def measure_sensitivity(
    model: ScoredModel,
    method: Choice,
    against: Choice,
    texts: Sequence[Sequence[int]],
    grain: Grain,
    progress: Progress,
) -> Sensitivity:
    """Score ``texts`` with each module alone in ``method`` and everything else in ``against``.

    Holds the verifier's logits of all texts, and both models' weights as fp32. ``InvalidInput`` when the methods are
    one and the same, or a layer does not suit one of them.
    """
    if numbers(method) == numbers(against):
        raise InvalidInput.field("--method", f"{full_name(method)} is what it is compared with; nothing can differ")
    globs = module_globs(model.layer_names, grain)

    exact = model.layers(model.uniform(against), _part(progress, 0.0, _VERIFIER_READY))
    targets = model.logits(exact, texts)

    def agreement(layers: Mapping[str, Linear]) -> Agreement:
        return model.agreement(layers, texts, targets)

    quantised = model.layers(model.uniform(method), _part(progress, _VERIFIER_READY, _METHOD_READY))
    measuring = _part(progress, _METHOD_READY, 1.0)
    costs = []
    for index, (glob, names) in enumerate(globs.items()):
        measuring(f"{glob} in {full_name(method)}", index / (len(globs) + 2))
        saved = sum(
            model.layer_bytes(name, against.variant.weights) - model.layer_bytes(name, method.variant.weights)
            for name in names
        )
        found = agreement({**exact, **{name: quantised[name] for name in names}})
        costs.append(ModuleCost(glob=glob, matrices=len(names), agreement=found, bytes_saved=saved))
    costs.sort(key=lambda cost: (cost.agreement.acceptance, -cost.agreement.divergence))
    measuring("all modules together", len(globs) / (len(globs) + 2))
    worst = worst_modules(costs)
    left = [name for cost in worst for name in globs[cost.glob]]
    return Sensitivity(
        method=full_name(method),
        against=full_name(against),
        costs=tuple(costs),
        whole=agreement(quantised),
        worst=worst,
        relieved=agreement({**quantised, **{name: exact[name] for name in left}}),
    )


def worst_modules(costs: Sequence[ModuleCost]) -> tuple[ModuleCost, ...]:
    """The fewest modules, largest loss of acceptance first, that make up half of all losses; four at most, not all."""
    total = sum(1 - cost.agreement.acceptance for cost in costs)
    chosen: list[ModuleCost] = []
    for cost in costs[: min(_MOST_OVERRIDES, len(costs) - 1)]:
        chosen.append(cost)
        if sum(1 - one.agreement.acceptance for one in chosen) >= _LARGEST_SHARE_LEFT * total:
            break
    return tuple(chosen)


def _part(progress: Progress, start: float, stop: float) -> Progress:
    """``progress`` for a stage that is the share ``start`` to ``stop`` of the whole."""
    return lambda text, share: progress(text, None if share is None else start + share * (stop - start))
