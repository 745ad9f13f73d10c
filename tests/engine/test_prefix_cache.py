"""Entries that are found again: the texts stay the same, and only what is not shared is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.errors import ContractViolation, WorkerLost
from qspec.interfaces import Admission, PrefillChunk, Sampling, VerifyAnswer, VerifyBatch
from qspec.sequence import Sequence
from tests.engine.stacks import SEEDED, Stack, attached_loop, finish, generate, generate_alone, running
from tests.engine.test_text_invariance import RecordingVerifier
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.usefixtures("kernels")
BLOCK = 16
SYSTEM = tuple(11 * index % 300 + 3 for index in range(400))
QUESTIONS = ((17,), (5, 9, 5, 9, 5), tuple(range(3, 20)), (5, 9, 7))
SAMPLINGS = {
    "greedy": Sampling(),
    "seeded": SEEDED,
    "history": replace(SEEDED, repetition_penalty=1.6, presence_penalty=0.5),
}


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model with room for a prompt of 400 tokens."""
    directory = tmp_path_factory.mktemp("long")
    write_tiny_model(directory / "model", "llama")
    about = json.loads((directory / "model/config.json").read_text())
    (directory / "model/config.json").write_text(json.dumps({**about, "max_position_embeddings": 512}))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield directory / "model"


def wanted(
    sampling: Sampling = Sampling(), *, system: tuple[int, ...] = SYSTEM[:60], draft_length: int | None = 3,
    max_tokens: int = 12, salt: str = "",
) -> list[Sequence]:
    """One sequence per question behind a common beginning."""
    return [
        Sequence(str(index), [*system, *question], max_tokens, sampling, draft_length=draft_length, cache_salt=salt)
        for index, question in enumerate(QUESTIONS)
    ]


def room(stack: Stack) -> bool:
    """Whether everything was given back."""
    return stack.free_blocks == stack.verifier.describe().num_blocks


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_texts_are_the_same_with_and_without(model: Path, sampling: str) -> None:
    with running(model, prefix_cache=False) as stack:
        plain = generate_alone(stack.loop, wanted(SAMPLINGS[sampling], draft_length=0))
        assert len(set(map(tuple, plain))) == len(QUESTIONS)
    for changes in ({}, {"max_batch_rows": 7}, {"kv_tokens": 112}, {"draft_quantization": "off"}):
        with running(model, **changes) as stack:
            together = wanted(SAMPLINGS[sampling])
            assert generate(stack.loop, together) == plain
            assert sum(one.cached_prompt_tokens or 0 for one in together) > 0
            again = wanted(SAMPLINGS[sampling], draft_length=8)
            assert generate_alone(stack.loop, again) == plain
            if "kv_tokens" not in changes:  # there they have to make room for each other
                assert all(one.cached_prompt_tokens == (len(one.prompt) - 1) // BLOCK * BLOCK for one in again)
            follow_up = [Sequence("", [*one.prompt, *one.generated[:5]], 7, one.sampling) for one in together]
            assert generate(stack.loop, follow_up) == [text[5:] for text in plain] or sampling == "history"
            assert room(stack)


def test_logits_have_the_same_bits_with_and_without(model: Path) -> None:
    found, reused = [], []
    for prefix_cache in (False, True):
        with running(model, kind=RecordingVerifier, prefix_cache=prefix_cache) as stack:
            assert isinstance(stack.verifier, RecordingVerifier)
            for _ in range(2):
                (sequence,) = wanted()[2:3]
                stack.verifier.logits = {}
                generate(stack.loop, [sequence])
                reused.append(sequence.cached_prompt_tokens)
                ends = range(sequence.prompt_len, len(sequence.tokens))
                found.append([stack.verifier.logits[sequence.slot, position] for position in ends])
    assert reused == [0, 0, 0, 64]
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_repeated_system_prompt_is_computed_once(long_model: Path) -> None:
    rows, texts = {}, []
    for prefix_cache in (False, True):
        with running(long_model, kv_tokens=2048, max_batch_rows=512, prefix_cache=prefix_cache) as stack:
            texts.append(generate_alone(stack.loop, several := wanted(system=SYSTEM)))
            rows[prefix_cache] = stack.loop.prefill_rows
            assert [one.cached_prompt_tokens for one in several] == [0, *[400 if prefix_cache else 0] * 3]
    assert texts[0] == texts[1]
    # A text's last token is pending, and enters with its first verification; 400 tokens are 25 blocks.
    assert rows[False] == sum(len(SYSTEM) + len(question) - 1 for question in QUESTIONS)
    assert rows[False] - rows[True] == (len(QUESTIONS) - 1) * len(SYSTEM)


def test_prompt_logprobs_are_told_in_full_and_leave_entries_for_others(model: Path) -> None:
    told = []
    for prefix_cache in (False, True):
        with running(model, prefix_cache=prefix_cache) as stack:
            generate(stack.loop, wanted())
            asking = wanted(Sampling(prompt_logprobs=2), system=SYSTEM[:50])
            generate(stack.loop, asking)
            assert [one.cached_prompt_tokens for one in asking] == [0] * len(QUESTIONS)
            assert all(len(one.prompt_logprobs) == one.prompt_len - 1 for one in asking)
            told.append([one.prompt_logprobs for one in asking])
            admission = Admission(slot=0, lease=2**62, sampling=Sampling(prompt_logprobs=2), token_ids=(1, 2))
            with pytest.raises(ContractViolation, match="computed"):
                stack.verifier.verify(VerifyBatch(epoch=1, round=1, admissions=(admission,)))
    assert told[0] == told[1]


def test_texts_of_another_salt_share_nothing(model: Path) -> None:
    with running(model) as stack:
        plain = generate(stack.loop, wanted())
        before = stack.loop.prefill_rows
        salted = wanted(salt="mine")
        assert generate_alone(stack.loop, salted[:2]) == plain[:2]
        assert stack.loop.prefill_rows - before == len(salted[0].prompt) - 1 + len(salted[1].prompt) - 1 - 48
        assert [one.cached_prompt_tokens for one in salted[:2]] == [0, 48]


def test_a_new_verifier_knows_nothing(model: Path) -> None:
    with running(model) as first, running(model, epoch=2) as second:
        loop = attached_loop(first.verifier, None)
        plain = generate(loop, wanted())
        for verifier, cached in ((second.verifier, 0), (first.verifier, 48)):  # the first one was never gone
            loop.attach_verifier(verifier)
            again = wanted()[:1]
            assert generate(loop, again) == plain[:1]
            assert again[0].cached_prompt_tokens == cached


class DyingVerifier:
    """Takes in one batch more, does not tell, and is gone."""

    def __init__(self, stack: Stack, calls: int) -> None:
        self._inner, self._calls = stack.verifier, calls
        self.describe = stack.verifier.describe

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        self._calls -= 1
        if self._calls >= 0:
            return self._inner.verify(batch)
        if self._calls == -1:
            self._inner.verify(batch)
        raise WorkerLost("gone")

    def close(self) -> None:
        """Whoever made the inner one closes it."""


@pytest.mark.parametrize("calls", [2, 3, 5, 8])  # the first two claim the slots
def test_a_verifier_lost_in_a_prefill_with_shared_entries_changes_no_text(model: Path, calls: int) -> None:
    with running(model, prefix_cache=False) as stack:
        plain = generate_alone(stack.loop, wanted(SEEDED, draft_length=0))
    with running(model, max_batch_rows=16) as first, running(model, epoch=2, max_batch_rows=16) as second:
        loop = attached_loop(DyingVerifier(first, calls), first.drafter)
        several = wanted(SEEDED)
        for sequence in several:
            loop.add(sequence)
        with pytest.raises(WorkerLost):
            finish(loop, several)
        loop.attach_verifier(second.verifier)
        assert finish(loop, several) == plain
        assert room(second)


def test_a_first_chunk_that_is_known_already_is_passed_over(model: Path) -> None:
    with running(model) as stack:
        generate(stack.loop, wanted()[:1])
        tokens = (*SYSTEM[:48], 1, 2, 3)
        admission = Admission(slot=0, lease=2**62, sampling=Sampling(), token_ids=tokens)
        chunk = PrefillChunk(slot=0, lease=2**62, start=0, token_ids=tokens)
        answer = stack.verifier.verify(VerifyBatch(epoch=1, round=1, admissions=(admission,), prefill_chunks=(chunk,)))
        (result,) = answer.results
        assert (answer.prefill_rows, result.reused_len, result.cached_len) == (3, 48, 51)
        again = stack.verifier.verify(VerifyBatch(epoch=1, round=1, admissions=(admission,), prefill_chunks=(chunk,)))
        assert (again.prefill_rows, again.results) == (0, answer.results)
        foreign = replace(admission, slot=1, token_ids=(1, 10**6))
        with pytest.raises(ContractViolation, match="vocabulary"):
            stack.verifier.verify(VerifyBatch(epoch=1, round=2, admissions=(foreign,)))
        endless = replace(admission, slot=1, token_ids=(1,) * 129)
        with pytest.raises(ContractViolation, match="128 positions"):
            stack.verifier.verify(VerifyBatch(epoch=1, round=2, admissions=(endless,)))
