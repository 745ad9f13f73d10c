"""Which tokens may come, row by row, so that a text keeps to its grammar.

The matcher's state is that of the committed tokens. It takes drafts only to see the rows behind them, and gives them
back. What is committed it learns from the history that it is asked with, so a repeated question, a recovery and a
preemption need nothing of their own: a matcher that knows less than the history catches up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import llguidance


@dataclass(frozen=True, slots=True)
class RowMasks:
    """What a grammar allows behind a history and behind each of k drafts."""

    allowed: NDArray[np.bool_]
    """``[k + 1, vocab]``. Rows behind a draft that is not allowed decide nothing, and allow everything."""
    dead_row: int | None
    """First row that no token can follow, or whose tokens are too costly to find; it allows everything."""


class GrammarMatcher:
    """Follows one text. Used by one thread."""

    def __init__(
        self, fresh: Callable[[], llguidance.LLMatcher], *, vocab_size: int, ending_token_ids: frozenset[int]
    ) -> None:
        """``fresh`` makes a matcher before its first token; ``ending_token_ids`` come where the grammar can end."""
        self._fresh, self._vocab_size = fresh, vocab_size
        self._endings = ending_token_ids
        self._matcher = fresh()
        self._taken: list[int] = []
        """Tokens that ``_matcher`` has taken."""

    def masks(self, generated: Sequence[int], drafts: Sequence[int]) -> RowMasks:
        """The rows behind ``generated``, all tokens that were committed behind the prompt, and behind each draft."""
        allowed = np.ones((len(drafts) + 1, self._vocab_size), dtype=np.bool_)
        tokens = list(generated)
        ended = not self._endings.isdisjoint(tokens)
        for row in range(len(drafts) + 1):
            here = self._ends_only() if ended else self._allowed(tokens)
            if not here.any():
                return RowMasks(allowed, row)
            allowed[row] = here
            if row == len(drafts) or not here[drafts[row]]:
                break
            tokens.append(drafts[row])
            ended = ended or drafts[row] in self._endings
        return RowMasks(allowed, None)

    def _allowed(self, tokens: list[int]) -> NDArray[np.bool_]:
        """What may follow ``tokens``: ``[vocab]``; nothing when they have no continuation.

        The library's limits count what a matcher did so far, drafts included. So that what can be followed depends on
        the tokens alone, one that failed is replaced by a fresh one, whose failure counts.
        """
        if self._take(tokens) and (found := self._mask()) is not None:
            return found
        self._start_afresh()
        if self._take(tokens) and (found := self._mask()) is not None:
            return found
        self._start_afresh()
        return np.zeros(self._vocab_size, dtype=np.bool_)

    def _take(self, tokens: list[int]) -> bool:
        """Have the matcher take exactly ``tokens``; False when it cannot."""
        common = min(len(tokens), len(self._taken))
        while tokens[:common] != self._taken[:common]:  # by the drafts that did not stand, at most
            common -= 1
        if (surplus := len(self._taken) - common) and not self._matcher.rollback(surplus):
            return False
        del self._taken[common:]
        new = tokens[common:]
        if new and not self._matcher.consume_tokens(new):
            return False
        self._taken += new
        return True

    def _mask(self) -> NDArray[np.bool_] | None:
        """What may follow the taken tokens; None when a limit is hit."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return None
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(np.bool_)
        allowed[list(self._endings)] = self._matcher.is_accepting()
        return allowed

    def _ends_only(self) -> NDArray[np.bool_]:
        """For whoever goes on behind the end."""
        allowed = np.zeros(self._vocab_size, dtype=np.bool_)
        allowed[list(self._endings)] = True
        return allowed

    def _start_afresh(self) -> None:
        self._matcher, self._taken = self._fresh(), []
