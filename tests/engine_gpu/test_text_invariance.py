"""Greedy and seeded text on GPU kernels is the same, token for token, whatever the loop does to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec.interfaces import Sampling
from tests.engine.stacks import SEEDED, Stack, generate, generate_alone, running, sequences

SAMPLINGS = {"greedy": Sampling(), "seeded": SEEDED}
PROMPTS = ((17,), (5, 9, 5), tuple(range(3, 12)))
TOKENS = 6
Texts = dict[str, list[list[int]]]


@contextmanager
def on_gpu(model: Path, **changes: Any) -> Iterator[Stack]:
    """A small stack whose kernels are those of a GPU."""
    settings = {"draft_quantization": "fp8:plane", "verify_quantization": "none", "device": "cuda", "kernels": "auto",
                "max_slots": 3, "kv_tokens": 256, "max_draft_length": 4, "max_batch_rows": 32, **changes}
    with running(model, **settings) as stack:
        yield stack


def wanted(sampling: str, draft_length: int | None) -> list[Any]:
    return sequences(SAMPLINGS[sampling], draft_length=draft_length, prompts=PROMPTS, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def plain(model: Path) -> Texts:
    """The texts of the verifier alone, one prompt at a time, by sampling."""
    with on_gpu(model, draft_quantization="off") as stack:
        return {name: generate_alone(stack.loop, wanted(name, 0)) for name in SAMPLINGS}


def test_the_texts_of_these_tests_can_differ(plain: Texts) -> None:
    assert len({tuple(text) for texts in plain.values() for text in texts}) == 2 * len(PROMPTS)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_does_not_depend_on_draft_length_or_batch(model: Path, plain: Texts, sampling: str) -> None:
    with on_gpu(model) as stack:
        for draft_length in (0, 1, 2, 3, 4) if sampling == "greedy" else (0, 3):  # filters take the interpreter long
            asked = wanted(sampling, draft_length)
            assert generate(stack.loop, asked) == plain[sampling]
            if draft_length:
                drafted, accepted = (sum(getattr(s.stats, name) for s in asked) for name in ("drafted", "accepted"))
                assert 0 < accepted <= drafted
        assert generate_alone(stack.loop, wanted(sampling, 4)) == plain[sampling]
        mixed = wanted(sampling, None)
        for sequence, draft_length in zip(mixed, (0, 3, 1), strict=True):
            sequence.draft_length = draft_length
        assert generate(stack.loop, mixed) == plain[sampling]


def test_the_same_weights_always_agree(model: Path, plain: Texts) -> None:
    with on_gpu(model, draft_quantization="none") as stack:
        asked = wanted("greedy", 4)
        assert generate(stack.loop, asked) == plain["greedy"]
        drafted, accepted = (sum(getattr(s.stats, name) for s in asked) for name in ("drafted", "accepted"))
        assert accepted > 0.8 * drafted, "drafts past the end of a text are not counted as accepted"


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_does_not_depend_on_prefill_chunks(model: Path, plain: Texts, sampling: str) -> None:
    with on_gpu(model, max_batch_rows=7) as stack:
        assert generate(stack.loop, wanted(sampling, 4)) == plain[sampling]


def test_rejection_draws_from_the_draft_distributions_in_the_arena(model: Path) -> None:
    from dataclasses import replace

    from qspec.interfaces import AcceptanceRule

    with on_gpu(model) as stack:
        asked = sequences(
            replace(SEEDED, rule=AcceptanceRule.REJECTION), draft_length=3, prompts=PROMPTS, max_tokens=TOKENS)
        assert all(len(text) == TOKENS for text in generate(stack.loop, asked))
        assert sum(sequence.stats.accepted for sequence in asked) > 0


def test_nothing_is_left_mapped(model: Path) -> None:
    with on_gpu(model) as stack:
        assert stack.drafter is not None
        generate(stack.loop, wanted("greedy", 2))
        arena, attached = stack.verifier.arena, stack.drafter._attached
        assert attached is not None and attached.arena is not arena
        place = attached.arena.tensor("kv/keys").data_ptr()
        assert place == arena.tensor("kv/keys").data_ptr(), "one copy"
        assert attached.arena.tensor("state/leases").device == torch.device("cpu")


def test_text_does_not_depend_on_who_else_the_host_decides_on(model: Path, plain: Texts) -> None:
    """One request is told log-probabilities, so the host draws for it; the others keep their text, and it has its."""
    from dataclasses import replace

    with on_gpu(model) as stack:
        mixed = sequences(SEEDED, draft_length=2, prompts=PROMPTS[:2], max_tokens=4)
        mixed[0].sampling = replace(SEEDED, logprobs=1)
        texts = generate(stack.loop, mixed)
    assert texts == [text[:4] for text in plain["seeded"][:2]]
    assert mixed[0].generated and len(mixed[1].generated) == 4


def test_few_decided_rows_of_a_long_prompt_are_gathered(model: Path) -> None:
    """20 rows of which one is decided on go through ``lm_head`` as 16, and say what they say by themselves."""
    from qspec.engine.cuda_forward import CudaForward
    from qspec.engine.passes import SequenceRows
    from qspec.kernels.paged_attention import BlockSpan
    from qspec.kernels.triton.row_draws import RowDraw

    with on_gpu(model, draft_quantization="off") as stack:
        forward, arena = stack.verifier.forward, stack.verifier.arena
        assert isinstance(forward, CudaForward)
        keys, values, probs = (arena.tensor(name) for name in ("kv/keys", "kv/values", "draft/probs"))
        rows = [SequenceRows(tuple(range(3, 22)), 0, BlockSpan((0,)))]
        asked = [None] * 18 + [RowDraw(sampling=SEEDED, drafted=7)]
        hidden, found = forward.decided_rows(rows, keys, values, asked, probs)
        assert hidden.shape == (19, forward.config.hidden_size)
        assert found[:18] == [None] * 18 and found[18] is not None
        rows = [SequenceRows((21,), 18, BlockSpan((0,)))]
        _, alone = forward.decided_rows(rows, keys, values, [RowDraw(sampling=SEEDED, drafted=7)], probs)
        assert alone == [found[18]]
