"""Where a text ends, and what a stack refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.errors import ContractViolation, InvalidInput, OutOfMemory
from qspec.interfaces import (
    Admission,
    DraftBatch,
    DraftItem,
    PrefillChunk,
    Sampling,
    SlotOutcome,
    Verification,
    VerifyBatch,
)
from qspec.sequence import FinishReason, Sequence
from tests.engine.stacks import MAX_TOKENS, PROMPTS, SEEDED, config, generate, quiet, running, sequences

DRAFT_LENGTHS = [0, 1, 4, 8]
pytestmark = pytest.mark.usefixtures("kernels")


def test_a_text_ends_behind_its_end_token_and_at_its_limit(model: Path) -> None:
    with running(model) as stack:
        (text,) = generate(stack.loop, sequences(SEEDED, prompts=PROMPTS[2:3]))
        assert len(text) == MAX_TOKENS
        end = next(index for index in range(6, MAX_TOKENS) if text[index] not in text[:index])
        for draft_length in DRAFT_LENGTHS:
            for limit in (1, 2, 7, MAX_TOKENS):
                sequence = Sequence("", list(PROMPTS[2]), limit, SEEDED, draft_length=draft_length)
                assert generate(stack.loop, [sequence]) == [text[:limit]]
                assert sequence.finish is FinishReason.LENGTH
            sequence = Sequence("", list(PROMPTS[2]), MAX_TOKENS, SEEDED, frozenset({text[end]}), draft_length)
            assert generate(stack.loop, [sequence]) == [text[: end + 1]]
            assert sequence.finish is FinishReason.END_OF_SEQUENCE
        assert stack.free_blocks == stack.verifier.describe().num_blocks


@pytest.mark.parametrize("draft_length", DRAFT_LENGTHS)
def test_a_text_fills_the_model_to_its_last_position(model: Path, draft_length: int) -> None:
    with running(model, max_model_len=40) as stack:
        wanted = sequences(draft_length=draft_length, max_tokens=1000)
        texts = generate(stack.loop, wanted)
        assert [len(sequence.tokens) for sequence in wanted] == [40] * len(PROMPTS)
        assert all(sequence.finish is FinishReason.LENGTH for sequence in wanted)
        with pytest.raises(ContractViolation, match="room"):
            stack.loop.add(Sequence("", [1] * 40, 1, Sampling()))
    with running(model, draft_quantization="off") as stack:
        longer = generate(stack.loop, sequences(max_tokens=40))
        assert [text[: len(short)] for text, short in zip(longer, texts, strict=True)] == texts


def test_a_text_may_use_every_block(model: Path) -> None:
    with running(model, kv_tokens=32, max_slots=1) as stack:
        (sequence,) = sequences(prompts=PROMPTS[1:2], max_tokens=1000, draft_length=8)
        generate(stack.loop, [sequence])
        assert len(sequence.tokens) == 32
        assert sequence.stats.recomputations == 0
        assert stack.free_blocks == 2


def test_drafting_from_the_very_first_position(model: Path) -> None:
    with running(model) as stack:
        assert stack.drafter is not None
        admission = Admission(slot=0, lease=2**62, sampling=Sampling())
        stack.verifier.verify(VerifyBatch(epoch=1, round=1, admissions=(admission,)))
        item = DraftItem(
            slot=0, lease=2**62, committed_len=1, pending_token=17, draft_length=3, sampling=Sampling()
        )
        (drafted,) = stack.drafter.draft(DraftBatch(epoch=1, round=2, items=(item,))).results
        assert (drafted.outcome, len(drafted.draft_tokens)) == (SlotOutcome.OK, 3)
        verification = Verification(
            slot=0, lease=2**62, committed_len=1, pending_token=17, draft_tokens=drafted.draft_tokens
        )
        (decided,) = stack.verifier.verify(VerifyBatch(epoch=1, round=2, verifications=(verification,))).results
        (text,) = generate(stack.loop, sequences(prompts=PROMPTS[:1]))
        assert decided.token_ids == tuple(text[: decided.accepted + 1])


def test_more_rows_than_the_limit_are_refused(model: Path) -> None:
    with running(model, max_batch_rows=5) as stack:
        admission = Admission(slot=0, lease=2**62, sampling=Sampling())
        chunk = PrefillChunk(slot=0, lease=2**62, start=0, token_ids=(1, 2, 3, 4, 5, 6))
        with pytest.raises(ContractViolation, match="6 rows"):
            stack.verifier.verify(VerifyBatch(epoch=1, round=1, admissions=(admission,), prefill_chunks=(chunk,)))


def test_a_cache_that_does_not_fit_is_refused_with_the_budget(model: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"lower kv_tokens or max_slots\n(.*\n)*.*KV blocks fp32"):
        LocalVerifier.load(config(model, kv_tokens=2**40), progress=quiet, epoch=1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"verify_quantization": "int3"}, "verify_quantization"), ({"max_model_len": 129}, "max_model_len"),
     ({"kv_tokens": 64, "max_model_len": 65}, "max_model_len")],
)
def test_what_the_verifier_cannot_do_is_named(model: Path, changes: dict[str, int | str], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        LocalVerifier.load(config(model, **changes), progress=quiet, epoch=1)


def test_a_round_must_have_a_row_for_every_slot(model: Path) -> None:
    assert config(model, max_slots=8, max_batch_rows=8).max_batch_rows == 8
    with pytest.raises(InvalidInput, match="max_batch_rows"):
        config(model, max_slots=9, max_batch_rows=8)


def test_a_drafter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    from tests.tiny_models import write_tiny_model

    write_tiny_model(tmp_path / "other", "llama", seed=1)
    other = LocalDrafter.load(config(tmp_path / "other"), progress=quiet)
    with running(model) as stack:
        with pytest.raises(InvalidInput, match="another model"):
            stack.loop.attach_drafter(other)
        assert not stack.loop.drafter_attached
        assert generate(stack.loop, sequences(prompts=PROMPTS[:1]))
    with pytest.raises(InvalidInput, match="draft_quantization"):
        LocalDrafter.load(config(model, draft_quantization="off"), progress=quiet)
