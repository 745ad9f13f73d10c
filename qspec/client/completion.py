"""Whole texts, put together from the pieces of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qspec.client.deltas import Delta, Finish, TokenLogprob
from qspec.errors import QspecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One text, as a whole."""

    text: str
    token_ids: tuple[int, ...]
    finish: Finish
    choice: int = 0
    """Which of the ``n`` texts this is."""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    request_id: str = ""


@dataclass(slots=True)
class CompletionBuilder:
    """Texts in the making."""

    count: int
    """Texts that come: ``n``."""
    _pieces: dict[int, list[Delta]] = field(default_factory=dict)

    def add(self, delta: Delta) -> None:
        """Take the next piece."""
        self._pieces.setdefault(delta.choice, []).append(delta)

    def build(self) -> tuple[Completion, ...]:
        """The texts, by choice; raises ``QspecError`` where one has no end, though its stream has."""
        return tuple(_completion(choice, self._pieces.get(choice, [])) for choice in range(self.count))


def collect(deltas: Iterable[Delta], n: int = 1) -> tuple[Completion, ...]:
    """The ``n`` texts of a stream."""
    builder = CompletionBuilder(n)
    for delta in deltas:
        builder.add(delta)
    return builder.build()


def _completion(choice: int, pieces: list[Delta]) -> Completion:
    if not pieces or (finish := pieces[-1].finish) is None:
        raise QspecError("the server ended the text without a reason")
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        finish=finish,
        choice=choice,
        logprobs=tuple(each for piece in pieces for each in piece.logprobs),
        prompt_logprobs=tuple(each for piece in pieces for each in piece.prompt_logprobs),
        prompt_token_ids=tuple(token for piece in pieces for token in piece.prompt_token_ids),
        request_id="".join(piece.request_id for piece in pieces),
    )
