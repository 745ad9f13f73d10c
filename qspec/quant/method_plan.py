"""Which method each linear layer of a worker has: its default, and the layers that were overridden (no torch here).

Mixed precision is a matter of the plan alone. Whoever stores weights or multiplies with them asks it layer by layer,
and a plan without overrides gives every layer the default. The drafter's plan is made beside the verifier's: where a
variant is not written, each layer takes the one that the verifier's store of that very layer holds, or else the one
whose codes the model came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qspec.config import StackConfig
from qspec.errors import FieldViolation, InvalidInput
from qspec.quant.methods import (
    Backend,
    Choice,
    Role,
    Support,
    check_draft_method,
    check_verify_method,
    choose_variant,
    choose_verify,
    most_stored,
)
from qspec.quant.overrides import OVERRIDE_FIELDS, Override, parse_overrides
from qspec.quant.weight_formats import is_held_by

_SHOWN_LAYERS = 6
"""Layer names that an error shows at each end of the list."""


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """The method of every linear layer of one worker."""

    default: Choice
    """What layers have that no override matches."""
    overrides: tuple[Override, ...]
    layers: Mapping[str, Choice]
    """Every linear layer by canonical name, in the order of use."""

    def weights(self, layer: str) -> str:
        """The weight format of a layer."""
        return self.layers[layer].variant.weights

    @property
    def formats(self) -> tuple[str, ...]:
        """The weight formats that occur, in the order of use."""
        return tuple(dict.fromkeys(map(self.weights, self.layers)))

    @property
    def row_invariant(self) -> bool:
        """Whether a verifier's text is the same, bit for bit, with and without speculation."""
        return all(choice.variant.row_invariant for choice in self.layers.values())

    @property
    def label(self) -> str:
        """For people: the default's label with the overrides in it, and which of them are emulated."""
        return self.default.labelled(", ".join(map(self._override_label, self.overrides)))

    def held_by(self, store: MethodPlan, layer: str) -> bool:
        """Whether the weights of ``layer`` lie in a store of another worker's formats."""
        return is_held_by(self.weights(layer), store.weights(layer))

    def _override_label(self, override: Override) -> str:
        matched = [choice for layer, choice in self.layers.items() if last_match(self.overrides, layer) is override]
        emulated = any(choice.support is Support.EMULATED for choice in matched)
        return f"{override} emulated" if emulated else str(override)


def check_methods(config: StackConfig, role: Role, backend: Backend) -> None:
    """What can be said of one worker's methods without the model: ``InvalidInput`` naming each that cannot be used."""
    violations: list[FieldViolation] = []
    check = check_draft_method if role is Role.DRAFT else check_verify_method
    for step in (
        lambda: check(getattr(config, role.value), backend),
        lambda: parse_overrides(getattr(config, OVERRIDE_FIELDS[role]), role, backend),
    ):
        try:
            step()
        except InvalidInput as error:
            violations += error.violations
    if violations:
        raise InvalidInput(*violations)


def plan_verify(
    config: StackConfig, layers: Sequence[str], backend: Backend, *, stored: Mapping[str, str] | None = None
) -> MethodPlan:
    """The verifier's plan for the linear ``layers``. ``InvalidInput`` for unknown methods and globs without a layer.

    ``stored``: the formats of layers that the model came with; where a variant is not written, it is the one that most
    of them have.
    """
    default = choose_verify(config.verify_quantization, backend, stored=stored)
    overrides = parse_overrides(config.verify_overrides, Role.VERIFY, backend)
    _require_matches(overrides, layers, Role.VERIFY)
    chosen = {
        layer: default if (override := last_match(overrides, layer)) is None
        else choose_variant(override.method, Role.VERIFY, backend, stores=most_stored(stored or {}))
        for layer in layers
    }
    return MethodPlan(default, overrides, chosen)


def plan_draft(
    config: StackConfig, backend: Backend, *, verify: MethodPlan, stored: Mapping[str, str] | None = None
) -> MethodPlan:
    """The drafter's plan for the layers of the verifier's. Raises as ``plan_verify``; there is none for ``off``."""
    own = most_stored(stored or {})
    default = choose_variant(
        config.draft_quantization, Role.DRAFT, backend, stores=(verify.default.variant.weights, *own)
    )
    overrides = parse_overrides(config.draft_overrides, Role.DRAFT, backend)
    _require_matches(overrides, list(verify.layers), Role.DRAFT)
    chosen = {}
    for layer in verify.layers:
        override = last_match(overrides, layer)
        method = config.draft_quantization if override is None else override.method
        chosen[layer] = choose_variant(method, Role.DRAFT, backend, stores=(verify.weights(layer), *own))
    return MethodPlan(default, overrides, chosen)


def last_match(overrides: Sequence[Override], layer: str) -> Override | None:
    """The override of a layer: the last one that matches."""
    return next((override for override in reversed(overrides) if override.matches(layer)), None)


def _require_matches(overrides: Sequence[Override], layers: Sequence[str], role: Role) -> None:
    """``InvalidInput`` naming every glob that matches no layer."""
    unmatched = [override.glob for override in overrides if not any(map(override.matches, layers))]
    if not unmatched:
        return
    shown = list(layers)
    if len(shown) > 2 * _SHOWN_LAYERS:
        shown[_SHOWN_LAYERS:-_SHOWN_LAYERS] = ["…"]
    raise InvalidInput(*(
        FieldViolation(OVERRIDE_FIELDS[role], f"{glob!r} matches no linear layer; there are: {', '.join(shown)}")
        for glob in unmatched
    ))
