"""Texts as token ids, for calibrating and measuring: read from a file, in the form in which the model meets them.

A model that was tuned for chats meets prompts in its chat template, and calibration on text of another form makes its
weights worse (benchmarks/README.md has figures), so prompts are rendered as the coordinator renders them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qspec.errors import InvalidInput
from qspec.models.tokenizer import Tokenizer

_LARGEST_UNKNOWN_SHARE = 0.05
"""Of a text's tokens; more means that the tokenizer was not made for its language."""
_LETTERS_PER_TOKEN = 1.25
"""Fewer than this in a text in another alphabet than Latin means that the tokenizer spells it (SmolLM2's: Greek 0.95,
Chinese 0.54; one made for the language: 1.5 to 4)."""


def token_sequences(path: Path, tokenizer: Tokenizer, longest: int, field: str = "texts") -> list[tuple[int, ...]]:
    """The texts of ``path`` as token ids, none longer than ``longest`` (what is longer goes on in another sequence).

    ``*.jsonl``: one object a line with ``text`` (taken as it is), ``messages``, ``turns`` or ``prompt`` (a chat, of
    which only the first turn is known; ``answer``, if given, follows it). Any other file is plain text. Sequences of
    a single token are left out: nothing can be predicted in them.

    ``InvalidInput`` naming ``field`` for a file that cannot be read, is empty, has a line of another form, or is of a
    language that the tokenizer was not made for.
    """
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.field(field, f"{path} cannot be read as UTF-8 text ({error})") from error
    if not content.strip():
        raise InvalidInput.field(field, f"{path} is empty")
    texts = list(_records(content, path, tokenizer, field)) if path.suffix == ".jsonl" else [tokenizer.encode(content)]
    _require_known_language(content, texts, path, tokenizer, field)
    pieces = [tuple(ids[start : start + longest]) for ids in texts for start in range(0, len(ids), longest)]
    sequences = [piece for piece in pieces if len(piece) > 1]
    if not sequences:
        raise InvalidInput.field(field, f"{path} holds no text of at least two tokens")
    return sequences


def _records(content: str, path: Path, tokenizer: Tokenizer, field: str) -> Iterator[list[int]]:
    """Token ids of each line of a JSONL file."""
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield _encode(record, tokenizer)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidInput.field(
                field,
                f"{path} line {number} is no JSON object with text, messages, turns or prompt "
                f"({type(error).__name__}: {error})",
            ) from error


def _encode(record: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    if "text" in record:
        return tokenizer.encode(_string(record["text"]))
    if "messages" in record:
        messages: Sequence[dict[str, str]] = record["messages"]
    else:
        first = record["turns"][0] if "turns" in record else record["prompt"]
        messages = [{"role": "user", "content": _string(first)}]
    if tokenizer.has_chat_template:
        prompt = tokenizer.encode_chat(messages)
    else:
        prompt = tokenizer.encode("\n".join(message["content"] for message in messages))
    return prompt + (tokenizer.encode(_string(record["answer"])) if "answer" in record else [])


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _require_known_language(
    content: str, texts: list[list[int]], path: Path, tokenizer: Tokenizer, field: str
) -> None:
    """Refuse a text that the tokenizer can only spell."""
    tokens, letters = sum(len(ids) for ids in texts), sum(character.isalpha() for character in content)
    if not tokens:
        return
    unknown = tokenizer.unknown_token_id
    share = sum(ids.count(unknown) for ids in texts) / tokens if unknown is not None else 0.0
    foreign = sum(character.isalpha() and not character.isascii() for character in content)
    spelled = 2 * foreign > letters and letters < _LETTERS_PER_TOKEN * tokens
    if share > _LARGEST_UNKNOWN_SHARE or spelled:
        raise InvalidInput.field(
            field,
            f"{path} is of a language that this model's tokenizer was not made for ({tokens} tokens for {letters} "
            f"letters, {share:.0%} unknown); give a text like those that the model is to write",
        )
