"""A constrained text keeps to its constraint, and is the same with and without drafts, in a batch and after losses."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qspec.constraint import Constraint, ConstraintKind
from qspec.engine.constraint_compiler import ConstraintCompiler
from qspec.grammar import Grammars
from qspec.grammar_matcher import GrammarMatcher
from qspec.interfaces import AcceptanceRule, Sampling, Verifier, VerifierDescription, VerifyAnswer, VerifyBatch
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from qspec.sequence import FinishReason, Sequence
from tests.engine.stacks import PROMPTS, attached_loop, finish, generate, generate_alone, running

pytestmark = pytest.mark.usefixtures("kernels")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "home": {
            "type": "object",
            "properties": {
                "floor": {"type": "integer", "minimum": -3, "maximum": 99},
                "town": {"type": "string", "pattern": "^[a-zé]{1,4}$"},
            },
            "required": ["floor", "town"],
            "additionalProperties": False,
        },
    },
    "required": ["kind", "age", "home"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
REGEX = "[a-f]{2,9}(-[0-9é]{3}){1,2}"
GRAMMAR = r"""
start: sum
sum: product ("+" product){0,2}
product: NUMBER | "(" NUMBER "*" NUMBER ")"
NUMBER: /[1-9][0-9]{0,2}/
"""


def is_record(text: str) -> bool:
    """Whether ``SCHEMA`` admits it, by hand."""
    record = json.loads(text)
    home = record["home"]
    return (
        list(record) == ["kind", "age", "home"] and list(home) == ["floor", "town"]
        and record["kind"] in ("cat", "dog") and type(record["age"]) is int and 0 <= record["age"] <= 120
        and type(home["floor"]) is int and -3 <= home["floor"] <= 99
        and re.fullmatch("[a-zé]{1,4}", home["town"]) is not None)


def is_sum(text: str) -> bool:
    """Whether it is a text of ``GRAMMAR``, by hand."""
    number = "[1-9][0-9]{0,2}"
    product = rf"({number}|\({number}\*{number}\))"
    return re.fullmatch(rf"{product}(\+{product}){{0,2}}", text) is not None


CONSTRAINTS: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
    "json_schema": (Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA)), is_record),
    "regex": (Constraint(ConstraintKind.REGEX, REGEX), lambda text: re.fullmatch(REGEX, text) is not None),
    "grammar": (Constraint(ConstraintKind.GRAMMAR, GRAMMAR), is_sum),
}
HOT = Sampling(temperature=1.5, seed=71)
SAMPLINGS = {
    "greedy": Sampling(),
    "seeded": HOT,
    "filters and penalties": replace(HOT, top_k=40, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.3),
    "min_tokens": replace(HOT, min_tokens=100, ending_token_ids=(2,)),
}
EOS = frozenset({2})


@pytest.fixture
def tokenizer(model: Path) -> Tokenizer:
    """The tiny model's."""
    return Tokenizer.load(prepare_tokenizer(str(model)))


def wanted(constraint: Constraint, sampling: Sampling, draft_length: int | None) -> list[Sequence]:
    """One sequence per prompt, each with a seed of its own."""
    return [
        Sequence(
            str(index), list(prompt), 90, replace(sampling, seed=sampling.seed + index), eos_token_ids=EOS,
            draft_length=draft_length, constraint=constraint)
        for index, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize(("kind", "how"), [
    *((kind, how) for kind in CONSTRAINTS for how in ("greedy", "seeded")),
    ("regex", "filters and penalties"), ("grammar", "min_tokens"),
])
def test_texts_are_valid_and_the_same_for_every_draft_length(
    model: Path, tokenizer: Tokenizer, kind: str, how: str
) -> None:
    (constraint, valid), sampling = CONSTRAINTS[kind], SAMPLINGS[how]
    with running(model) as stack:
        plain_texts = wanted(constraint, sampling, 0)
        plain = generate_alone(stack.loop, plain_texts)
        for sequence, text in zip(plain_texts, map(tokenizer.decode, plain), strict=True):
            assert sequence.finish is FinishReason.END_OF_SEQUENCE and valid(text), text
        assert len({tuple(text) for text in plain}) > 1, "the prompts make no difference"
        drafted = accepted = 0
        for draft_length in (1, 2, 3, 4, None):
            texts = wanted(constraint, sampling, draft_length)
            assert generate(stack.loop, texts) == plain
            drafted += sum(sequence.stats.drafted for sequence in texts)
            accepted += sum(sequence.stats.accepted for sequence in texts)
        assert 0 <= accepted < drafted


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_texts_under_rejection_are_valid(model: Path, tokenizer: Tokenizer, kind: str) -> None:
    constraint, valid = CONSTRAINTS[kind]
    with running(model) as stack:
        for draft_length in (0, 1, 4):
            texts = wanted(constraint, replace(HOT, rule=AcceptanceRule.REJECTION), draft_length)
            for text in generate(stack.loop, texts):
                assert valid(tokenizer.decode(text)), text
            assert all(sequence.finish is FinishReason.END_OF_SEQUENCE for sequence in texts)


def test_constrained_and_free_texts_share_a_batch(model: Path) -> None:
    constraint, _ = CONSTRAINTS["json_schema"]
    with running(model) as stack:
        def mixed(draft_length: int) -> list[Sequence]:
            texts = wanted(constraint, HOT, draft_length)
            for sequence in texts[::2]:
                sequence.constraint = None
            return texts
        assert generate(stack.loop, mixed(4)) == generate_alone(stack.loop, mixed(0))


def test_preempted_texts_go_on_in_their_grammar(model: Path) -> None:
    constraint, _ = CONSTRAINTS["json_schema"]
    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(constraint, HOT, 0))
    with running(model, kv_tokens=160, max_batch_rows=7) as stack:
        texts = wanted(constraint, HOT, 3)
        assert generate(stack.loop, texts) == plain
        assert sum(sequence.stats.recomputations for sequence in texts) > 0


def test_texts_are_the_same_however_long_compiling_takes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on meanwhile, and a sequence that is dropped is compiled for no more."""
    compiled, ready = Grammars.matcher, threading.Event()
    constraint, _ = CONSTRAINTS["regex"]
    asked: list[Constraint] = []

    def slow(grammars: Grammars, constraint: Constraint) -> GrammarMatcher:
        asked.append(constraint)
        ready.wait(20)
        return compiled(grammars, constraint)

    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(constraint, HOT, 0))
        monkeypatch.setattr(Grammars, "matcher", slow)
        texts = wanted(constraint, HOT, 3)
        free, dropped = texts[2], texts[3]
        free.constraint, dropped.constraint = None, Constraint(ConstraintKind.REGEX, "dropped")
        for sequence in texts:
            stack.loop.add(sequence)
        while len(free.generated) < 20:
            stack.loop.step()
        assert [len(sequence.generated) for sequence in texts if sequence is not free] == [0] * 4
        stack.loop.remove(dropped)
        stack.loop.step()
        ready.set()
        made = finish(stack.loop, texts)
        assert [made[index] for index in (0, 1, 4)] == [plain[index] for index in (0, 1, 4)]
        assert asked == [constraint] * 3
        assert stack.free_blocks == stack.verifier.describe().num_blocks


class AskingTwice:
    """A verifier whose every answer is lost once, so that it is asked again."""

    def __init__(self, inner: Verifier) -> None:
        self._inner = inner

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._inner.describe()

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        first, again = self._inner.verify(batch), self._inner.verify(batch)
        for told, told_again in zip(first.results, again.results, strict=True):
            assert not told.token_ids or told.token_ids == told_again.token_ids  # undecided at first, perhaps
        return again

    def close(self) -> None:
        """See ``Verifier``."""
        self._inner.close()


def test_a_repeated_question_moves_no_grammar_on(model: Path) -> None:
    constraint, _ = CONSTRAINTS["json_schema"]
    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(constraint, HOT, 0))
        loop = attached_loop(AskingTwice(stack.verifier), stack.drafter)
        assert generate(loop, wanted(constraint, HOT, 4)) == plain


def test_texts_go_on_with_another_verifier(model: Path) -> None:
    constraint, _ = CONSTRAINTS["json_schema"]
    with running(model) as first, running(model, epoch=2) as second:
        plain = generate_alone(first.loop, wanted(constraint, HOT, 0))
        texts, loop = wanted(constraint, HOT, 4), attached_loop(first.verifier, first.drafter)
        for sequence in texts:
            loop.add(sequence)
        for _ in range(8):
            loop.step()
        assert any(len(sequence.generated) > 0 for sequence in texts)
        loop.attach_verifier(second.verifier)
        assert second.drafter is not None
        loop.attach_drafter(second.drafter)
        assert finish(loop, texts) == plain
        assert any(sequence.stats.recomputations for sequence in texts)


def test_a_constraint_that_was_not_checked_ends_its_own_text_alone(model: Path) -> None:
    broken = Constraint(ConstraintKind.REGEX, "(")
    with running(model) as stack:
        fine, bad = wanted(CONSTRAINTS["regex"][0], HOT, 3)[:2]
        bad.constraint = broken
        generate(stack.loop, [fine, bad])
        assert (bad.finish, bad.generated) == (FinishReason.DEAD_END, [])
        assert fine.finish is FinishReason.END_OF_SEQUENCE
        assert stack.free_blocks == stack.verifier.describe().num_blocks


def test_a_grammar_that_fails_in_the_middle_ends_behind_the_same_token(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Grammars.matcher

    def dying(grammars: Grammars, constraint: Constraint) -> object:
        matcher = compiled(grammars, constraint)
        allowed = matcher._allowed
        monkeypatch.setattr(matcher, "_allowed", lambda tokens: allowed(tokens) & (len(tokens) < 7))
        return matcher

    monkeypatch.setattr(Grammars, "matcher", dying)
    texts: list[list[list[int]]] = []
    with running(model) as stack:
        for draft_length in (0, 1, 4):
            sequences = wanted(CONSTRAINTS["json_schema"][0], HOT, draft_length)
            texts.append(generate(stack.loop, sequences))
            assert all(sequence.finish is FinishReason.DEAD_END for sequence in sequences)
    assert all(len(text) == 7 for text in texts[0])
    assert texts[1] == texts[0] and texts[2] == texts[0]


def test_the_draft_stays_unmasked_and_the_mask_is_what_makes_texts_valid(
    model: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: the verifier forgets its constraint."""
    constraint, valid = CONSTRAINTS["regex"]
    monkeypatch.setattr(ConstraintCompiler, "begin", lambda compiler, tenancies: [
        setattr(tenancy, "constraint", None) for tenancy in tenancies if tenancy is not None])
    with running(model) as stack:
        texts = generate(stack.loop, wanted(constraint, HOT, 2))
        assert not any(valid(tokenizer.decode(text)) for text in texts)
