"""A language model of four lines, for tests: the next token is a fixed function of the last tokens.

Greedy text depends on the last two tokens only; at a temperature above 0 the seed and the choice enter as well, so that
different seeds give different texts and the same seed the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

from qspec.interfaces import Sampling


def next_token(tokens: Sequence[int], sampling: Sampling, vocab_size: int) -> int:
    """The toy model's token after ``tokens`` (at least one)."""
    previous = tokens[-2] if len(tokens) > 1 else 0
    noise = 0 if sampling.greedy else sampling.seed * 2654435761 + sampling.choice * 40503 + len(tokens) * 97
    return (31 * tokens[-1] + 17 * previous + 7 + noise) % vocab_size


def continue_text(tokens: Sequence[int], count: int, sampling: Sampling, vocab_size: int) -> list[int]:
    """The ``count`` tokens that the toy model writes after ``tokens``: what every decoding must give."""
    text = list(tokens)
    for _ in range(count):
        text.append(next_token(text, sampling, vocab_size))
    return text[len(tokens):]
