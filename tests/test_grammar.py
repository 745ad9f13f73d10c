"""Constraints over a vocabulary: what compiles, what is refused in bounded time, and which tokens may come."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import InvalidInput
from qspec.grammar import Grammars
from qspec.models.tokenizer import Tokenizer
from tests.models.test_text_stream import byte_fallback
from tests.tiny_models import build_tiny_tokenizer

VOCAB_SIZE = 320
EOS = 2
LONGEST_S = 10.0
"""A blow-up would take hours, and memory; the limits hold within a fraction of a second."""


def tiny(eos_token_ids: frozenset[int] = frozenset({EOS})) -> Tokenizer:
    """A byte-level vocabulary of 300 tokens with a few merges."""
    backend = build_tiny_tokenizer().backend_tokenizer
    return Tokenizer(backend, eos_token_ids=eos_token_ids, special_tokens={}, chat_template=None)


TOKENIZER = tiny()
GRAMMARS = Grammars(lambda: TOKENIZER, vocab_size=VOCAB_SIZE)


def regex(text: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, text)


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@pytest.mark.parametrize("words", [{"abab", "abb", "the fox"}, {"é", "ab", ""}, {"aaaa", "aaab"}])
def test_the_texts_that_masks_allow_are_those_of_the_constraint(words: set[str]) -> None:
    matcher = GRAMMARS.matcher(regex("|".join(map(re.escape, sorted(words)))))
    found: set[str] = set()
    ways: list[list[int]] = [[]]
    while ways:
        generated = ways.pop()
        for token in matcher.masks(generated, ()).allowed[0].nonzero()[0].tolist():
            assert token < TOKENIZER.vocab_size, "padding of the vocabulary"
            if token == EOS:
                found.add(TOKENIZER.decode(generated))
            else:
                ways.append([*generated, token])
    assert found == words


def test_whatever_fits_is_allowed_where_there_is_a_choice() -> None:
    row = GRAMMARS.matcher(regex("[ab]{1,3}")).masks((), ()).allowed[0]
    fitting = {token for token in range(TOKENIZER.vocab_size) if re.fullmatch("[ab]{1,3}", TOKENIZER.decode([token]))}
    assert set(row.nonzero()[0].tolist()) == fitting


def test_rows_behind_drafts_are_those_behind_the_same_tokens_committed() -> None:
    constraint = schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    drafting, plain = GRAMMARS.matcher(constraint), GRAMMARS.matcher(constraint)
    tokens = encode('{"a": 12}')
    for start in range(len(tokens)):
        for wrong in (False, True):
            drafts = tokens[start : start + 3] + ([encode("z")[0]] if wrong else [])
            masks = drafting.masks(tokens[:start], drafts)
            assert masks.dead_row is None
            for row in range(len(tokens[start : start + 3]) + 1):
                expected = plain.masks(tokens[: start + row], ()).allowed[0]
                np.testing.assert_array_equal(masks.allowed[row], expected)


def test_rows_behind_a_forbidden_draft_decide_nothing() -> None:
    a, z = encode("a")[0], encode("z")[0]
    masks = GRAMMARS.matcher(regex("[ab]{3}")).masks((), (a, z, a))
    assert masks.dead_row is None
    assert [bool(row[a]) for row in masks.allowed] == [True, True, True, True]
    assert [bool(row[z]) for row in masks.allowed] == [False, False, True, True]


def test_a_matcher_catches_up_and_goes_back() -> None:
    constraint = regex("(ab|ba)*c?")
    moved = GRAMMARS.matcher(constraint)
    for text in ("ab", "abba", "ab", "", "baba", "abc"):
        fresh = GRAMMARS.matcher(constraint).masks(encode(text), ())
        np.testing.assert_array_equal(moved.masks(encode(text), ()).allowed, fresh.allowed)


def test_behind_the_end_there_is_only_the_end() -> None:
    masks = GRAMMARS.matcher(regex("ab?")).masks((*encode("a"), EOS), (EOS, encode("b")[0]))
    assert [row.nonzero()[0].tolist() for row in masks.allowed[:2]] == [[EOS], [EOS]]


def test_every_end_of_sequence_token_ends() -> None:
    endings = frozenset({0, EOS})
    grammars = Grammars(lambda: tiny(endings), vocab_size=VOCAB_SIZE)
    masks = grammars.matcher(regex("a")).masks((), (encode("a")[0],))
    assert not masks.allowed[0][sorted(endings)].any()
    assert set(masks.allowed[1].nonzero()[0]) == endings


def test_a_text_that_cannot_be_continued_is_a_dead_row() -> None:
    masks = GRAMMARS.matcher(regex("ab")).masks(encode("z"), ())
    assert masks.dead_row == 0


def test_byte_fallback_vocabularies_are_read_as_they_decode() -> None:
    backend = byte_fallback()._backend
    ending = backend.get_vocab_size() - 1
    tokenizer = Tokenizer(backend, eos_token_ids=frozenset({ending}), special_tokens={}, chat_template=None)
    grammars = Grammars(lambda: tokenizer, vocab_size=tokenizer.vocab_size)
    masks = grammars.matcher(regex("[éa]")).masks((), (backend.token_to_id("<0xC3>"),)).allowed
    first, second = ({backend.id_to_token(token) for token in row.nonzero()[0].tolist()} for row in masks)
    assert first == {"é", "a", "<0xC3>", "<0x61>"}
    assert second == {"<0xA9>"}


@pytest.mark.parametrize("constraint", [
    schema(True), schema({"enum": ["a", 1, None]}), schema({"type": "array", "items": {"type": "integer"}}),
    schema({"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}),
    regex("[a-z]+@[a-z]+\\.(com|org)"), regex(""), grammar('start: "(" start ")" | "x"'), schema({"enum": [""]}),
])
def test_usual_constraints_compile(constraint: Constraint) -> None:
    assert GRAMMARS.check(constraint) is None


@pytest.mark.parametrize("constraint", [
    Constraint(ConstraintKind.JSON_SCHEMA, ""), Constraint(ConstraintKind.JSON_SCHEMA, "{"),
    Constraint(ConstraintKind.JSON_SCHEMA, "[" * 60_000), schema([1]), schema({"type": "strin"}), schema(False),
    schema({"if": {"type": "string"}}), schema({"x-guidance": {"lenient": True}, "uniqueItems": True}),
    schema({"$ref": "http://127.0.0.1/x"}), schema({"type": "string", "pattern": "("}), schema({"enum": []}),
    regex("("), regex("(?=a)b"), regex("a\\1"), regex("\x00("),
    grammar(""), grammar("start: foo"), grammar("begin: /a/"), grammar('start: "a'), grammar("start: x\nx: x"),
])
def test_what_does_not_compile_is_refused_in_one_line(constraint: Constraint) -> None:
    reason = GRAMMARS.check(constraint)
    assert reason and "\n" not in reason and len(reason) <= 320
    with pytest.raises(InvalidInput, match=constraint.kind.value):
        GRAMMARS.matcher(constraint)


BLOW_UPS = {
    "repeated repetition": regex("(a{1000}){1000}"),
    "nested repetition": regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "wide": regex("((a?){200}){200}a{200}"),
    "nesting": regex("(" * 20_000 + "a" + ")" * 20_000),
    "intersection": grammar("start: A\nA: /(.*a.{20})/ & ~/(.*b.{20})/"),
    "copies": grammar("start: " + "".join(f"x{i}{{9}}\nx{i}: " for i in range(30)) + '"a"'),
    "long list": schema({"type": "array", "minItems": 10**6, "items": {"type": "integer"}}),
    "product": schema({"allOf": [
        {"anyOf": [{"type": "object", "properties": {f"a{i}{j}": {"type": "string"}}} for j in range(4)]}
        for i in range(12)]}),
    "fans": schema({"$defs": {
        f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} if i < 25 else
        {"type": "integer"} for i in range(26)}, "$ref": "#/$defs/d0"}),
    "properties": schema({"type": "object", "properties": {
        f"property{i}": {"type": "string", "pattern": "^(a|b)*c{1,400}$"} for i in range(900)}}),
}


@pytest.mark.parametrize("name", BLOW_UPS)
def test_what_blows_up_is_settled_in_time(name: str) -> None:
    started = time.process_time()
    GRAMMARS.check(BLOW_UPS[name])  # some are refused, some are no trouble to follow
    assert time.process_time() - started < LONGEST_S


@pytest.mark.parametrize("name", ["repeated repetition", "nesting", "product"])
def test_what_blows_up_is_refused(name: str) -> None:
    assert GRAMMARS.check(BLOW_UPS[name])


def test_a_text_that_becomes_too_costly_ends_where_a_fresh_matcher_would() -> None:
    """What drafts cost a matcher is not held against the text."""
    constraint = regex("(\\w{1,300}\\s){1,300}")
    word, space = encode("b")[0], encode(" ")[0]
    tokens = ([word] * 3 + [space]) * 40
    drafting, plain = GRAMMARS.matcher(constraint), GRAMMARS.matcher(constraint)
    for length in range(0, len(tokens), 16):
        ahead = drafting.masks(tokens[:length], tokens[length : length + 4])
        here = plain.masks(tokens[:length], ())
        assert (ahead.dead_row == 0) == (here.dead_row == 0)
        np.testing.assert_array_equal(ahead.allowed[0], here.allowed[0])


def test_what_takes_too_long_is_refused_whatever_its_size() -> None:
    grammars = Grammars(lambda: TOKENIZER, vocab_size=VOCAB_SIZE, longest_s=0.005)
    started = time.monotonic()
    reason = grammars.check(BLOW_UPS["long list"])
    assert reason == "takes longer than 0.005 s to compile: make it smaller"
    assert time.monotonic() - started < 2
    assert grammars.matcher(regex("a")), "whoever compiles beside others has the time"


def test_compiling_leaves_the_interpreter_to_others() -> None:
    turns, compiled = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not compiled.is_set():
            turns += 1
            time.sleep(0.0005)

    other = threading.Thread(target=take_turns)
    other.start()
    assert GRAMMARS.check(BLOW_UPS["long list"]) is None
    compiled.set()
    other.join()
    assert turns > 10


def test_a_vocabulary_is_read_once_and_beforehand() -> None:
    loaded: list[Tokenizer] = []
    grammars = Grammars(lambda: loaded.append(TOKENIZER) or TOKENIZER, vocab_size=VOCAB_SIZE)
    for _ in range(2):
        grammars.prepare()
    assert grammars.check(regex("a")) is None and grammars.matcher(regex("a"))
    assert len(loaded) == 1


@pytest.mark.parametrize("vocab_size", [290, 300, 331])
def test_a_vocabulary_may_have_fewer_or_more_tokens_than_logits_have_columns(vocab_size: int) -> None:
    allowed = Grammars(lambda: TOKENIZER, vocab_size=vocab_size).matcher(regex("[ab]+")).masks((), ()).allowed
    assert allowed.shape == (1, vocab_size)
    same = min(vocab_size, VOCAB_SIZE)
    np.testing.assert_array_equal(
        allowed[0, :same], GRAMMARS.matcher(regex("[ab]+")).masks((), ()).allowed[0, :same])
    assert not allowed[0, VOCAB_SIZE:].any()


def test_a_model_without_an_end_is_refused() -> None:
    grammars = Grammars(lambda: tiny(frozenset()), vocab_size=VOCAB_SIZE)
    assert "end-of-sequence" in (grammars.check(regex("a")) or "")
