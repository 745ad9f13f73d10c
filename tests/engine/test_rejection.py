"""The rejection rule on real workers: distributions travel in the arena, and the texts follow the verifier's law."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats

from qspec.engine.regions import DRAFT_PROBS, DRAFT_ROUNDS
from qspec.interfaces import AcceptanceRule, Sampling, SlotOutcome, Verification, VerifyBatch
from qspec.sequence import Sequence
from tests.engine.stacks import PROMPTS, Stack, free_blocks, generate, running, sequences

REJECTING = Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=3, rule=AcceptanceRule.REJECTION)
TEXTS = 480
pytestmark = pytest.mark.usefixtures("kernels")


def test_a_text_can_be_repeated_and_most_drafts_stand(model: Path) -> None:
    with running(model) as stack:
        first, again = (sequences(REJECTING, draft_length=3) for _ in range(2))
        assert generate(stack.loop, first) == generate(stack.loop, again)
        drafted, accepted = (sum(getattr(s.stats, name) for s in first) for name in ("drafted", "accepted"))
        assert 0.5 * drafted < accepted <= drafted
        assert sum(sequence.stats.recomputations for sequence in first) == 0
        assert free_blocks(stack.verifier) == stack.verifier.describe().num_blocks


def test_distributions_lie_in_the_arena_and_late_ones_are_not_used(model: Path) -> None:
    with running(model) as stack:
        (sequence,) = sequences(REJECTING, draft_length=3, prompts=PROMPTS[1:2])
        stack.loop.add(sequence)
        stack.loop.step()
        stack.loop.step()
        probs = stack.verifier.arena.tensor(DRAFT_PROBS)[sequence.slot, :3]
        torch.testing.assert_close(probs.sum(-1), torch.ones(3), rtol=0, atol=1e-5)
        assert int((probs > 0).sum(-1).max()) <= 50
        assert int(stack.verifier.arena.tensor(DRAFT_ROUNDS)[sequence.slot]) > 0
        # A drafter that was lost on its way leaves no distributions of this round: the slot is stale, nothing is drawn.
        drafts = Verification(
            slot=sequence.slot, lease=sequence.lease, committed_len=len(sequence.tokens),
            pending_token=sequence.tokens[-1], draft_tokens=(1, 2),
        )
        (result,) = stack.verifier.verify(VerifyBatch(epoch=1, round=10**9, verifications=(drafts,))).results
        assert (result.outcome, result.token_ids) == (SlotOutcome.STALE, ())


def texts_of(stack: Stack, rule: AcceptanceRule, draft_length: int, first_seed: int) -> Counter[tuple[int, ...]]:
    """Many texts of four tokens on one prompt; two possible tokens at each place."""
    samplings = [
        Sampling(temperature=2.0, top_k=2, seed=seed, rule=rule) for seed in range(first_seed, first_seed + TEXTS)
    ]
    wanted = [
        Sequence("", list(PROMPTS[2]), 4, sampling, draft_length=draft_length) for sampling in samplings
    ]
    return Counter(tuple(text) for text in generate(stack.loop, wanted))


def test_texts_follow_the_law_of_the_verifier_alone(model: Path) -> None:
    with running(model, max_slots=40, kv_tokens=40 * 32, max_batch_rows=1024) as stack:
        alone = texts_of(stack, AcceptanceRule.COUPLED, 0, 0)
        drafted = texts_of(stack, AcceptanceRule.REJECTION, 2, 10**6)
    common = [text for text in alone | drafted if alone[text] + drafted[text] >= 12]
    assert len(common) > 6
    table = [[counts[text] for text in common] for counts in (alone, drafted)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
