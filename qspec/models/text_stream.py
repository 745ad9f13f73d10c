"""Text as it is decided, never half a character.

A character may span several tokens, and how a token is written may depend on those before it (the first token of a
SentencePiece text loses its space). So the stream decodes a short window of tokens: some that were given out already,
as context, and the new ones; what the window's text has beyond what was given out is new. While it ends in U+FFFD, more
bytes may still make a whole character of that, and it is held back. This is the ``prefix_offset``/``read_offset``
scheme of Text Generation Inference and vLLM, made exact: everything given out, put together, is the text of all tokens.

Vocabularies with byte *fallback* (``<0xE2>``) need one more care: their decoder writes a run of such tokens as
characters only if the whole run is valid UTF-8, so a run is held back until a token ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_LONGEST_WINDOW = 32
_KEPT_TOKENS = 16
_LONGEST_CHARACTER = 4


class TokenDecoder(Protocol):
    """What a stream needs of a tokenizer (``qspec.models.tokenizer.Tokenizer`` has it)."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``."""
        ...

    def settles(self, token_id: int) -> bool:
        """Whether the text of the tokens before ``token_id`` no longer depends on what follows it."""
        ...


class TextStream:
    """Turns the tokens of one sequence, as they come, into pieces of its text. Amortised constant work per token."""

    def __init__(self, tokenizer: TokenDecoder) -> None:
        self._tokenizer = tokenizer
        self._unsettled: list[int] = []
        """Tokens of an open byte run, not in the window yet."""
        self._window: list[int] = []
        self._context = 0
        """Leading tokens of the window whose text was given out in full."""
        self._given = 0
        """Leading characters of the window's text that were given out."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Take more tokens; returns the text that they decide, possibly none."""
        self._unsettled.extend(token_ids)
        settled = len(self._unsettled)
        while settled and not self._tokenizer.settles(self._unsettled[settled - 1]):
            settled -= 1
        if not settled:
            return ""
        self._window.extend(self._unsettled[:settled])
        del self._unsettled[:settled]
        text = self._tokenizer.decode(self._window)
        decided = max(self._given, len(text) - text.endswith(REPLACEMENT))
        new_text = text[self._given : decided]
        self._given = decided
        if new_text and decided == len(text):
            # What follows a whole character is written independently of what precedes it but for the token before.
            self._keep(self._window[self._context :])
        elif len(self._window) > _LONGEST_WINDOW:
            self._shorten(text)
        return new_text

    def flush(self) -> str:
        """No more tokens follow: returns what was held back, and starts afresh."""
        text = self._tokenizer.decode([*self._window, *self._unsettled])[self._given :]
        self._unsettled, self._window, self._context, self._given = [], [], 0, 0
        return text

    def _keep(self, window: list[int]) -> None:
        self._window, self._context = window, len(window)
        self._given = len(self._tokenizer.decode(window))

    def _shorten(self, text: str) -> None:
        """Drop old tokens of a window that ends in no whole character for long (bytes that are no UTF-8).

        A UTF-8 decoder forgets its past within four bytes, so a tail of at least that many characters that is written
        the same alone as after the rest stays so, whatever follows.
        """
        tail = self._tokenizer.decode(self._window[-_KEPT_TOKENS:])
        head = self._tokenizer.decode(self._window[:-_KEPT_TOKENS])
        if len(tail) > _LONGEST_CHARACTER and head + tail == text and self._given >= len(head):
            self._window = self._window[-_KEPT_TOKENS:]
            self._context = 0
            self._given -= len(head)
