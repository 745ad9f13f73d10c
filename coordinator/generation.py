"""One running request: from committed tokens to pieces of text, and the count of what it took.

The engine's thread is the only one that uses a ``Generation``. Tokens are looked at one by one, so that where a text
ends, and which tokens it has, does not depend on how many of them a round committed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as ReadOnlySequence
from dataclasses import dataclass, replace
from typing import Protocol

from coordinator.request_times import RequestTimes
from coordinator.stop_strings import StopScanner
from qspec.interfaces import TokenLogprobs
from qspec.sequence import FinishReason, Sequence, SequenceStats


class TextSource(Protocol):
    """What a generation needs of ``qspec.models.text_stream.TextStream``."""

    def push(self, token_ids: ReadOnlySequence[int]) -> str:
        """Text that these tokens complete, in whole characters."""
        ...

    def flush(self) -> str:
        """What is left when no more tokens come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts and times (seconds) of one request."""

    prompt_tokens: int
    cached_prompt_tokens: int
    """Of those, for which nothing had to be computed."""
    completion_tokens: int
    time_to_first_token_s: float
    total_s: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens made after the first, over the time since the first; 0 when all came at once."""
        elapsed = self.total_s - self.time_to_first_token_s
        return (self.completion_tokens - 1) / elapsed if elapsed > 0 and self.completion_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the last piece carries."""

    reason: FinishReason
    matched_stop: str | None
    matched_token: int | None
    usage: Usage
    stats: SequenceStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text and tokens decided since the piece before; ``ending`` is set on the last one."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they are asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt's tokens from the second on, where they are asked for; in the first piece."""
    prompt_token_ids: tuple[int, ...] = ()
    """With an echo, in the first piece, whose text then begins with theirs."""
    choice: int = 0
    """Which of the request's texts it is of."""
    ending: Ending | None = None

    @classmethod
    def joined(cls, pieces: ReadOnlySequence[Piece]) -> Piece:
        """At least one piece of one text, in order, as a single one."""
        if len(pieces) == 1:
            return pieces[0]
        return replace(
            pieces[0], text="".join(piece.text for piece in pieces), ending=pieces[-1].ending,
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(of for piece in pieces for of in piece.logprobs))


class Generation:
    """The text side of one sequence."""

    def __init__(
        self, sequence: Sequence, text: TextSource, stops: ReadOnlySequence[str], *, echo: bool = False
    ) -> None:
        """``echo``: the prompt's text goes ahead, and no stop string is looked for in it."""
        self.sequence = sequence
        self._echo = echo
        self._text = text
        self._scanner = StopScanner(stops)
        self._completion_tokens = 0
        self.times = RequestTimes()

    def take(self, token_ids: ReadOnlySequence[int], logprobs: tuple[TokenLogprobs, ...] = ()) -> Piece:
        """Turn newly committed tokens into a piece; drops what comes after a stop string.

        The text of the first ``min_tokens`` tokens is not looked at: a stop string that begins there is none.
        """
        now = time.perf_counter()
        first = self.times.tokens_came(now)
        taken: list[int] = []
        echoed = tuple(self.sequence.prompt) if first and self._echo else ()
        text = [self._text.push(echoed)] if echoed else []
        for token in token_ids:
            taken.append(token)
            if token in self.sequence.ending_token_ids:
                continue  # ends the sequence; it has no text
            piece = self._text.push([token])
            scanned = self._completion_tokens + len(taken) > self.sequence.sampling.min_tokens
            text.append(self._scanner.push(piece) if scanned else piece)
            if self._scanner.matched is not None:
                break
        self._completion_tokens += len(taken)
        if self.sequence.finish is not None and self._scanner.matched is None:
            text.append(self._scanner.push(self._text.flush()))
            text.append(self._scanner.flush())
        return Piece(
            text="".join(text), token_ids=tuple(taken), logprobs=logprobs[: len(taken)],
            prompt_logprobs=tuple(self.sequence.prompt_logprobs) if first else (), prompt_token_ids=echoed,
            choice=self.sequence.sampling.choice, ending=self._ending(now))

    def _ending(self, now: float) -> Ending | None:
        reason = FinishReason.STOP_STRING if self._scanner.matched is not None else self.sequence.finish
        if reason is None:
            return None
        return Ending(
            reason=reason,
            matched_stop=self._scanner.matched,
            matched_token=self.sequence.matched_token if reason is FinishReason.STOP_TOKEN else None,
            usage=Usage(
                prompt_tokens=self.sequence.prompt_len,
                cached_prompt_tokens=self.sequence.cached_prompt_tokens or 0,
                completion_tokens=self._completion_tokens,
                time_to_first_token_s=self.times.time_to_first_token_s or 0.0,
                total_s=now - self.times.queued,
            ),
            stats=self.sequence.stats,
        )
