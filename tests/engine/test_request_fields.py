"""Whatever a request asks for, a seeded or greedy text is the same with and without drafts, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qspec.interfaces import AcceptanceRule, Sampling
from qspec.sequence import Sequence
from tests.engine.stacks import PROMPTS, SEEDED, generate, generate_alone, running, sequences

pytestmark = pytest.mark.usefixtures("kernels")

DRAWN = replace(SEEDED, top_k=0, top_p=1.0)
FIELDS = {
    "min_p": replace(DRAWN, min_p=0.02),
    "typical_p": replace(DRAWN, typical_p=0.7),
    "every filter": replace(SEEDED, top_k=100, min_p=0.001, typical_p=0.9),
}
"""Each differs from ``DRAWN`` by a field or more."""


def wanted(sampling: Sampling, draft_length: int | None = None) -> list[Sequence]:
    """One sequence per prompt."""
    return sequences(sampling, draft_length=draft_length)


@pytest.mark.parametrize("field", FIELDS)
def test_text_does_not_depend_on_drafts_or_batch(model: Path, field: str) -> None:
    sampling = FIELDS[field]
    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(sampling, 0))
        for draft_length in (1, 4, None):
            drafted = wanted(sampling, draft_length)
            assert generate(stack.loop, drafted) == plain
            if draft_length:
                assert sum(sequence.stats.accepted for sequence in drafted) > 0
        base = replace(DRAWN, temperature=sampling.temperature)
        assert generate_alone(stack.loop, wanted(base, 0)) != plain, "the field does nothing"


@pytest.mark.parametrize("field", FIELDS)
def test_drafts_with_the_same_weights_nearly_always_stand(model: Path, field: str) -> None:
    """By rejection drafter and verifier have the same distribution, if both applied the field to the same history."""
    with running(model, draft_quantization="none") as stack:
        rejecting = replace(FIELDS[field], rule=AcceptanceRule.REJECTION)
        drafted = wanted(rejecting, 4)
        generate(stack.loop, drafted)
        drafts, accepted = (sum(getattr(each.stats, name) for each in drafted) for name in ("drafted", "accepted"))
        assert drafts > len(PROMPTS) * 10
        assert accepted > 0.98 * drafts
