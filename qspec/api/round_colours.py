"""Text whose colours show what speculation did: accepted, recovered and bonus tokens (ANSI escapes)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import TextIO

from qspec.api.generation import GeneratedText, Round
from qspec.models.text_stream import TextStream
from qspec.models.tokenizer import Tokenizer

_RESET = "\033[0m"


class TokenOrigin(Enum):
    """Where a token came from, with the escape sequence of its colour."""

    ACCEPTED = "\033[32m"  # green: a draft that stood
    RECOVERED = "\033[31m"  # red: the verifier's own, where a draft was rejected
    BONUS = "\033[34m"  # blue: one more after a whole draft stood
    PLAIN = ""  # decoded without a draft


def token_origins(done: Round) -> Iterator[tuple[int, TokenOrigin]]:
    """The tokens of one round, in order."""
    for index, token in enumerate(done.token_ids):
        if index < done.accepted:
            yield token, TokenOrigin.ACCEPTED
        elif done.drafted == 0:
            yield token, TokenOrigin.PLAIN
        else:
            yield token, TokenOrigin.RECOVERED if done.accepted < done.drafted else TokenOrigin.BONUS


def wants_colour(out: TextIO) -> bool:
    """Whether to colour: on a terminal, or when FORCE_COLOR asks for it; never with NO_COLOR (no-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or out.isatty()


def coloured_text(text: GeneratedText, tokenizer: Tokenizer, *, colour: bool) -> str:
    """The new text; a character takes the colour of the token that completes it."""
    stream, parts = TextStream(tokenizer), []
    origin = TokenOrigin.PLAIN
    for done in text.rounds:
        for token, origin in token_origins(done):
            parts.append(_painted(stream.push([token]), origin, colour))
    parts.append(_painted(stream.flush(), origin, colour))
    return "".join(parts)


def _painted(piece: str, origin: TokenOrigin, colour: bool) -> str:
    return f"{origin.value}{piece}{_RESET}" if colour and piece and origin.value else piece


def summary(text: GeneratedText) -> str:
    """One line: tokens, rounds, and how many drafts stood."""
    drafted, accepted = (sum(getattr(done, name) for done in text.rounds) for name in ("drafted", "accepted"))
    tokens = len(text.token_ids)
    line = f"{tokens} tokens in {len(text.rounds)} rounds ({text.finish.value})"
    return f"{line}, {accepted} of {drafted} drafted tokens accepted" if drafted else line


def legend() -> str:
    """What the colours mean, in those colours."""
    shown = (TokenOrigin.ACCEPTED, TokenOrigin.RECOVERED, TokenOrigin.BONUS)
    return " ".join(f"{origin.value}{origin.name.lower()}{_RESET}" for origin in shown)


def show(texts: tuple[GeneratedText, ...], tokenizer: Tokenizer, out: TextIO) -> None:
    """Write all texts of a batch and their summaries."""
    colour = wants_colour(out)
    if colour:
        out.write(f"{legend()}\n")
    for text in texts:
        out.write(f"{coloured_text(text, tokenizer, colour=colour)}\n[{summary(text)}]\n")
    out.flush()
