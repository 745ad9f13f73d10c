"""Greedy and seeded text is the same, token for token, whatever the loop does to get it; so are the logits' bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.engine.batch_plan import Work
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import Sampling
from tests.engine.stacks import PROMPTS, SEEDED, Stack, generate, generate_alone, running, sequences

SAMPLINGS = {"greedy": Sampling(), "seeded": SEEDED}
Texts = dict[str, list[list[int]]]
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(scope="module")
def plain(model: Path, kernels: str) -> Texts:
    """The texts of the verifier alone, one prompt at a time, by sampling."""
    torch.set_num_threads(1)
    with running(model, draft_quantization="off") as stack:
        return {name: generate_alone(stack.loop, sequences(sampling)) for name, sampling in SAMPLINGS.items()}


def test_the_texts_of_these_tests_can_differ(plain: Texts) -> None:
    assert len({tuple(text) for texts in plain.values() for text in texts}) == 2 * len(PROMPTS)
    assert all(len(set(text)) > 3 for texts in plain.values() for text in texts)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_text_is_that_of_transformers(family: str, model_of: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model_of(family)).eval()
    with running(model_of(family)) as stack, torch.no_grad():
        for prompt, text in zip(PROMPTS, generate(stack.loop, sequences(draft_length=3)), strict=True):
            logits = theirs(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1]
            assert logits.argmax(-1).tolist() == text


@pytest.mark.parametrize("method", ["w8a8", "none"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_does_not_depend_on_draft_length_or_batch(model: Path, plain: Texts, method: str, sampling: str) -> None:
    with running(model, draft_quantization=method) as stack:
        for draft_length in (0, 1, 2, 4, 8, None):
            wanted = sequences(SAMPLINGS[sampling], draft_length=draft_length)
            assert generate(stack.loop, wanted) == plain[sampling]
            if draft_length:
                drafted, accepted = (sum(getattr(s.stats, name) for s in wanted) for name in ("drafted", "accepted"))
                assert 0 < accepted <= drafted
                if method == "none":
                    assert accepted > 0.95 * drafted, "the same weights nearly always agree"
        assert generate_alone(stack.loop, sequences(SAMPLINGS[sampling], draft_length=4)) == plain[sampling]
        mixed = sequences(SAMPLINGS[sampling])
        for sequence, draft_length in zip(mixed, (0, 3, None, 8, 1), strict=True):
            sequence.draft_length = draft_length
        assert generate(stack.loop, mixed) == plain[sampling]
        assert stack.free_blocks == stack.verifier.describe().num_blocks


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_does_not_depend_on_prefill_chunks(model: Path, plain: Texts, sampling: str) -> None:
    with running(model, max_batch_rows=7, prefix_cache=False) as stack:  # what was computed before is computed anew
        for draft_length in (0, 4):
            wanted = sequences(SAMPLINGS[sampling], draft_length=draft_length)
            assert generate(stack.loop, wanted) == plain[sampling]
        assert generate_alone(stack.loop, sequences(SAMPLINGS[sampling], draft_length=8)) == plain[sampling]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_does_not_depend_on_preemption_or_on_waiting_for_a_slot(
    model: Path, plain: Texts, sampling: str
) -> None:
    with running(model, kv_tokens=96, prefix_cache=False) as stack:  # six blocks; each text alone needs up to four
        wanted = sequences(SAMPLINGS[sampling], draft_length=4)
        assert generate(stack.loop, wanted) == plain[sampling]
        assert sum(sequence.stats.recomputations for sequence in wanted) > 0
        assert stack.free_blocks == 6
    with running(model, max_slots=2) as stack:
        assert generate(stack.loop, sequences(SAMPLINGS[sampling], draft_length=2)) == plain[sampling]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_text_does_not_depend_on_the_drafters_blocks(model: Path, sampling: str, block_size: int) -> None:
    """Attention adds up block by block, so another block size is another verifier; within one, nothing changes."""
    with running(model, block_size=block_size) as stack:
        expected = generate_alone(stack.loop, sequences(SAMPLINGS[sampling], draft_length=0))
        assert generate(stack.loop, sequences(SAMPLINGS[sampling], draft_length=4)) == expected


@pytest.mark.parametrize("family", ["smollm2", "llama3", "mistral", "qwen2", "qwen3", "gpt2"])
def test_every_family_is_invariant(family: str, model_of: Callable[[str], Path]) -> None:
    with running(model_of(family), max_batch_rows=16) as stack:
        expected = generate_alone(stack.loop, sequences(SEEDED, draft_length=0, max_tokens=10))
        assert generate(stack.loop, sequences(SEEDED, draft_length=3, max_tokens=10)) == expected


class RecordingVerifier(LocalVerifier):
    """Writes down the logits that it decides by: those of the tokens that stand, by slot and position."""

    logits: dict[tuple[int, int], Tensor]

    def _targets(self, works: list[Work], hidden: Tensor) -> list[int] | Tensor:
        self._computed = self.forward.logits(hidden)
        targets = super()._targets(works, hidden)
        assert isinstance(targets, Tensor) or targets == self._computed.argmax(-1).tolist()
        return targets

    def _decide(self, works: list[Work], targets: list[int] | Tensor) -> None:
        super()._decide(works, targets)
        logits, first = self._computed, 0
        for work in works:
            assert work.verification is not None and work.result is not None
            for index in range(work.result.accepted + 1):
                at = work.slot, work.verification.committed_len + index
                self.logits[at] = logits[first + index].clone()
            first += len(work.verification.draft_tokens) + 1


def logits_of(stack: Stack, draft_length: int, *, alone: bool, order: int = 1) -> list[dict[int, Tensor]]:
    """For each prompt, the logits by position."""
    verifier = stack.verifier
    assert isinstance(verifier, RecordingVerifier)
    wanted = sequences(draft_length=draft_length)[::order]
    found: list[dict[int, Tensor]] = []
    for group in [[sequence] for sequence in wanted] if alone else [wanted]:
        verifier.logits = {}
        generate(stack.loop, group)
        for sequence in group:
            ends = range(sequence.prompt_len, len(sequence.tokens))
            found.append({position: verifier.logits[sequence.slot, position] for position in ends})
    return found[::order]


def test_logits_have_the_same_bits_however_they_are_computed(model: Path) -> None:
    with running(model, kind=RecordingVerifier, prefix_cache=False) as stack:
        expected = logits_of(stack, 0, alone=True)
        others = [
            logits_of(stack, 4, alone=True), logits_of(stack, 0, alone=False), logits_of(stack, 1, alone=False),
            logits_of(stack, 8, alone=False, order=-1),
        ]
    with running(model, kind=RecordingVerifier, max_batch_rows=7, prefix_cache=False) as stack:
        others += [logits_of(stack, 0, alone=True), logits_of(stack, 3, alone=False)]
    with running(model, kind=RecordingVerifier, kv_tokens=96) as stack:
        others += [logits_of(stack, 5, alone=False), logits_of(stack, 0, alone=True)]  # some of it found again
        others.append(logits_of(stack, 2, alone=True))
    assert expected[3][PROMPTS[3].__len__()].std() > 0.1
    for other in others:
        for one, two in zip(expected, other, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[position], two[position]) for position in one)
