"""How many bytes of text a token stands for, at most: a text that is longer has too many tokens, unread.

A vocabulary that keeps every byte (byte-level, or with byte fallback) has tokens that stand for no more than they are
written with. Elsewhere tokens may stand for more: a normaliser composes or strips, unknown characters are put together,
a token takes the blanks beside it along. Composing shrinks a text to a third at most; for the others there is no bound,
and a factor of 16 is what is allowed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

ALLOWANCE = 16
"""How much more text than it is written with a token may stand for where bytes get lost on the way."""


def most_bytes_per_token(backend: tokenizers.Tokenizer) -> int:
    """The bound for one vocabulary."""
    pre_tokenizers = [*_parts(backend.pre_tokenizer, "pretokenizers")]
    byte_level = any(part["type"] == "ByteLevel" for part in pre_tokenizers)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    longest = max(
        (len(token) if byte_level and token not in added else len(token.encode())  # byte-level: a character a byte
         for token in backend.get_vocab(with_added_tokens=True)),
        default=1)
    keeps = (
        (byte_level or getattr(backend.model, "byte_fallback", False))
        and all(map(_keeps_bytes, [*pre_tokenizers, *_parts(backend.normalizer, "normalizers")]))
        and not any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
    )
    return longest if keeps else ALLOWANCE * longest


def _parts(component: Any, members: str) -> Iterator[dict[str, Any]]:
    """A normaliser or pre-tokenizer as its steps; ``members`` is what a sequence calls them."""
    if component is not None:
        state = json.loads(component.__getstate__())
        yield from state[members] if state["type"] == "Sequence" else (state,)


def _keeps_bytes(step: dict[str, Any]) -> bool:
    """Whether a step's text stands for as many bytes as it is written with, at most. Unknown steps do not."""
    match step["type"]:
        case "ByteLevel" | "Digits" | "Metaspace" | "Prepend":
            return True
        case "Split" | "Punctuation":
            return bool(step["behavior"] != "Removed")
        case "Replace":  # SentencePiece's blank
            return bool(step["pattern"] == {"String": " "} and step["content"])
    return False
