"""Compiles constraints against a vocabulary, in bounded time and memory. Torch-free, so that the coordinator can.

The library is llguidance (Rust; guidance-ai, MIT). Against xgrammar (Apache-2.0), the other well-kept one, as of 1.6.1
and 0.2.8: xgrammar's wheel is smaller (1.3 MB, 3 MB here) but requires torch, transformers and, on x86-64, triton,
which the coordinator must never import; llguidance requires nothing, and one abi3 wheel each for x86-64 and AArch64
serves Python 3.10 and later. Both roll back and take token by token. What decided besides: llguidance finds masks
lazily, over the trie of the vocabulary, so that a usual schema compiles within a millisecond; and its limits are counts
of work, not seconds, so that coordinator and verifier refuse the same constraints on any machine.

Measured for a vocabulary of 49,152 tokens on one core: 1 s to read the vocabulary, once, most of it in one piece under
the interpreter's lock, so servers do it while they load (``prepare``); 1 ms to compile a usual schema; 1 to 100 µs for
the library's usual mask, 6 ms for the worst ones; for five rows of a schema 0.24 ms to find the masks and 0.85 ms to
apply them. Compiling gives the lock up, and the limits end it within 0.3 s where it blows up, and within 0.6 s for the
largest grammars that they let through; what takes five seconds all the same, on a slow machine, is refused, too.

JSON schemas are taken at their word: a keyword that is not implemented is an error. Grammars are llguidance's Lark.
Where the grammar leaves a single text, the library allows the tokens that the tokenizer makes of it, and no others.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import InvalidInput, ModelError
from qspec.grammar_matcher import GrammarMatcher
from qspec.models.tokenizer import Tokenizer
from qspec.time_limit import within

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR_SIZE = 50_000
"""Symbols of all rules."""
MAX_COMPILE_FUEL = 200_000
"""Work on regular expressions while compiling; about 50,000 are done in a millisecond."""
MAX_STEP_FUEL = 100_000
"""The same for one mask; about 14,000 are done in a millisecond."""
MAX_STEP_ITEMS = 20_000
"""Parser items of one mask, about as many as are made in a millisecond."""
MAX_ROW_ITEMS = 2_000
"""Parser items of one byte: how ambiguous a grammar may be."""
MAX_LEXER_STATES = 20_000
"""States of one text's lexer, about 1.5 kB each."""
LONGEST_COMPILATION_S = 5.0
"""Seconds that ``check`` gives a constraint."""
_KEPT = 16
_PROBED_TOKENS = 4
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """A tokenizer as the library reads it."""

    tokens: llguidance.LLTokenizer
    ending_token_ids: frozenset[int]


class Grammars:
    """Constraints over one model's vocabulary. May be used by several threads."""

    def __init__(
        self, load_tokenizer: Callable[[], Tokenizer], *, vocab_size: int, longest_s: float = LONGEST_COMPILATION_S
    ) -> None:
        """
        Args:
            load_tokenizer: the model's; called once, by ``prepare`` or when the first constraint comes.
            vocab_size: columns of the model's logits, at least the tokenizer's tokens; the rest is never allowed.
            longest_s: bounds ``check``.
        """
        self._load_tokenizer, self._vocab_size, self._longest_s = load_tokenizer, vocab_size, longest_s
        self._lock = threading.Lock()
        self._vocabulary: _Vocabulary | ModelError | None = None  # the error: why there is none
        self._compiled: OrderedDict[Constraint, llguidance.LLMatcher] = OrderedDict()

    def prepare(self) -> None:
        """Read the vocabulary now. What keeps it from being read, ``check`` and ``matcher`` tell."""
        with contextlib.suppress(ModelError):
            self._load_vocabulary()

    def check(self, constraint: Constraint) -> str | None:
        """Why a text cannot be held to ``constraint``, if so; returns in time, whatever is wrong with it."""
        self.prepare()  # not a matter of the constraint
        try:
            within(self._longest_s, lambda: self._compile(constraint))
        except TimeoutError:
            return f"takes longer than {self._longest_s:g} s to compile: make it smaller"
        except (ValueError, ModelError) as error:
            return _reason(error)
        return None

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """Follows one text; ``InvalidInput`` naming the constraint's field for what cannot be compiled.

        The last few constraints stay compiled: choices of one request, and requests alike, share the work.
        """
        compiled = self._compiled.get(constraint)
        if compiled is None:
            try:
                compiled = self._compile(constraint)
            except (ValueError, ModelError) as error:
                raise InvalidInput.field(constraint.kind.value, _reason(error)) from error
        self._compiled[constraint] = compiled
        self._compiled.move_to_end(constraint)
        while len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return self._follow(compiled)

    def _follow(self, compiled: llguidance.LLMatcher) -> GrammarMatcher:
        return GrammarMatcher(
            compiled.deep_copy, vocab_size=self._vocab_size, ending_token_ids=self._load_vocabulary().ending_token_ids)

    def _compile(self, constraint: Constraint) -> llguidance.LLMatcher:
        """A matcher before its first token; ``ValueError`` says what is wrong, ``ModelError`` that none can be made."""
        import llguidance  # late: only who constrains texts needs it

        vocabulary = self._load_vocabulary()
        matcher = llguidance.LLMatcher(
            vocabulary.tokens, _grammar_text(constraint), log_level=0,
            limits=llguidance.LLParserLimits(
                max_grammar_size=MAX_GRAMMAR_SIZE, initial_lexer_fuel=MAX_COMPILE_FUEL, step_lexer_fuel=MAX_STEP_FUEL,
                step_max_items=MAX_STEP_ITEMS, max_items_in_row=MAX_ROW_ITEMS, max_lexer_states=MAX_LEXER_STATES,
                verbose_errors=False))
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        self._probe(self._follow(matcher))
        return matcher

    def _probe(self, matcher: GrammarMatcher) -> None:
        """Follow the first few tokens of some text: ``ValueError`` where it has none, or what blows up shows itself."""
        generated: list[int] = []
        for _ in range(_PROBED_TOKENS):
            masks = matcher.masks(generated, ())
            if masks.dead_row is not None:
                raise ValueError("allows no text that the model's vocabulary can express, or is too costly to follow")
            generated.append(int(masks.allowed[0].argmax()))

    def _load_vocabulary(self) -> _Vocabulary:
        """Once; ``ModelError``, the same every time."""
        with self._lock:
            if self._vocabulary is None:
                try:
                    self._vocabulary = _read_vocabulary(self._load_tokenizer(), self._vocab_size)
                except ModelError as error:
                    self._vocabulary = error
            if isinstance(self._vocabulary, ModelError):
                raise self._vocabulary
            return self._vocabulary


def _read_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> _Vocabulary:
    """What the library makes of a tokenizer; ``ModelError``."""
    import llguidance

    endings = tokenizer.eos_token_ids
    if not endings:
        raise ModelError("this model has no end-of-sequence token, by which a constrained text ends")
    try:
        tokens = llguidance.LLTokenizer(
            tokenizer.definition, n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=min(endings))
    except ValueError as error:
        reason = _one_line(str(error))
        raise ModelError(f"texts cannot be constrained with this model's tokenizer ({reason})") from error
    return _Vocabulary(tokens, endings)


def _grammar_text(constraint: Constraint) -> str:
    """The library's form of a constraint; ``ValueError``."""
    import llguidance

    match constraint.kind:
        case ConstraintKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintKind.GRAMMAR:
            return llguidance.LLMatcher.grammar_from_lark(constraint.text)
        case ConstraintKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(_schema(constraint.text), overrides={"lenient": False})


def _schema(text: str) -> dict[str, Any]:
    """A JSON schema as an object; ``ValueError``."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error
    if isinstance(schema, bool):  # JSON Schema's shorthands for what admits everything, and nothing
        return {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise ValueError("must be an object, true or false")
    return schema


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ModelError) else _one_line(str(error))


def _one_line(reason: str) -> str:
    reason = " ".join(reason.replace("<non-verbose/>", "").split())
    return reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…"
