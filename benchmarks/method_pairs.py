"""Which pairs of methods make sense: the rule behind ``docs/methods.md``, which states it in words.

A **verifier** is a variant that takes activations as they are: its text is the one that users get, and quantised
activations make a verify pass no cheaper in bytes. A plane is no verifier, because its store holds the better one.

A **drafter** beside it reads at most as many bits per weight and computes something else, and it

- has the verifier's weights or a plane of them (one copy serves both), or
- is what its method's name alone means beside that verifier, if the verifier is what its own method's name means
  (a copy of its own; another group size beside another one would tell nothing new).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qspec.evaluation.scoring import numbers
from qspec.quant.methods import METHODS, Backend, Choice, Role, choose_draft, choose_verify
from qspec.quant.weight_formats import WEIGHT_FORMATS, is_held_by

LIKE_Q4_1 = frozenset({"int4-g32-minimum", "int4-g32-asymmetric"})
"""Weight formats with the blocks of GGUF's Q4_1 (32 inputs, an offset each), which SmolLM2's file is in."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A drafter and the verifier that it drafts for."""

    draft: Choice
    verify: Choice

    @property
    def shares(self) -> bool:
        """Whether the drafter's format is the verifier's, or a plane of it."""
        return is_held_by(self.draft.variant.weights, self.verify.variant.weights)


def all_choices() -> list[Choice]:
    """Every variant, as a CPU's drafter has it: most bits first, a verifier before what drafts for it, and what has the
    same weights together.
    """
    choices = [
        Choice(method.name, variant, variant.on(Backend.CPU, Role.DRAFT))
        for method in METHODS.values()
        for variant in method.variants
    ]
    verified = {choice.variant.weights for choice in choices if can_decide(choice)}
    return sorted(choices, key=lambda choice: (
        -choice.variant.bits_per_weight, choice.variant.weights not in verified, choice.variant.weights,
        not can_decide(choice),
    ))


def can_decide(choice: Choice) -> bool:
    """Whether it makes sense as a verifier (see the module)."""
    return choice.variant.activations == "fp32" and WEIGHT_FORMATS[choice.variant.weights].plane_of is None


def sensible_pairs(choices: Sequence[Choice], own_formats: Collection[str] = LIKE_Q4_1) -> list[Pair]:
    """All pairs out of ``choices`` that make sense (see the module), without the formats of the model file itself."""
    quotable = [choice for choice in choices if choice.variant.weights not in own_formats]
    return [
        Pair(draft, verify)
        for verify in quotable if can_decide(verify)
        for draft in quotable if _makes_sense(Pair(draft, verify))
    ]


def _makes_sense(pair: Pair) -> bool:
    draft, verify = pair.draft, pair.verify
    other = numbers(draft) != numbers(verify)
    fewer = draft.variant.bits_per_weight <= verify.variant.bits_per_weight
    return other and fewer and (pair.shares or _meant_by_names(draft, verify))


def _meant_by_names(draft: Choice, verify: Choice) -> bool:
    """Whether the methods' names alone, without variants, choose this pair."""
    named = choose_verify(verify.method, Backend.CPU)
    return named.variant == verify.variant and choose_draft(draft.method, Backend.CPU, verify=named) == draft
