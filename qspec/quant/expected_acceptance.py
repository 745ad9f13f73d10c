"""How often a draft can be expected to stand before there is a text (no torch here): what ``auto`` weighs speed with.

The figures are those of ``docs/methods.md`` at temperature 1, rounded to nearest on a model of 135 million parameters,
which is hard to quantise; a test holds them to that table. Larger models accept more, of every format, so that the
order of formats holds and the gain is understated. In use, acceptance is measured (``qspec.draft_length``).
"""

from __future__ import annotations

from collections.abc import Mapping

from qspec.quant.methods import Variant
from qspec.quant.weight_formats import is_held_by

AGAINST_UNQUANTISED: Mapping[tuple[str, str], float] = {
    ("int8-g64", "fp32"): 0.984,
    ("int8-nibbles-g64", "fp32"): 0.982,
    ("int8-row", "fp32"): 0.975,
    ("e4m3-plane", "fp32"): 0.930,
    ("int8-row", "int8 per token"): 0.925,
    ("e4m3-row", "e4m3 per token"): 0.922,
    ("e4m3-plane", "e4m3 per token"): 0.914,
    ("nf4-g64", "fp32"): 0.769,
    ("int4-g64", "fp32"): 0.685,
    ("int4-plane-g64", "fp32"): 0.671,
    ("int4-g64", "int8 per token"): 0.671,
    ("int4-plane-g64", "int8 per token"): 0.650,
}
"""(weights, activations) of a draft whose target has other weights, of 8 bits or more: as good as unquantised."""
BESIDE_ITS_OWN_WEIGHTS: Mapping[str, float] = {
    "e4m3 per token": 0.940,
    "int8 per token": 0.914,
    "nvfp4": 0.750,
}
"""Activations of a draft whose target has the same weights and leaves activations as they are."""


def expected_acceptance(draft: Variant, verify: Variant) -> float | None:
    """The probability that a draft stands; None where nothing was measured."""
    if draft.weights == verify.weights:
        return 1.0 if draft.activations == verify.activations else BESIDE_ITS_OWN_WEIGHTS.get(draft.activations)
    if verify.bits_per_weight < 8 and not is_held_by(draft.weights, verify.weights):
        return None  # two coarse roundings of one weight, of which neither is near the other
    return AGAINST_UNQUANTISED.get((draft.weights, draft.activations))
