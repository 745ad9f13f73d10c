"""Log-probabilities of a prompt's tokens, from the rows that prefill it.

The row at position p says how probable token p + 1 was. Logits of a few rows are made at a time, so that a long chunk
needs no more memory than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qspec.engine.batch_plan import Work
from qspec.engine.forward import Forward
from qspec.interfaces import TokenLogprobs
from qspec.token_logprobs import token_logprobs

ROWS_AT_ONCE = 32
"""Rows whose logits are held at once."""


def note_prompt_logprobs(works: Sequence[Work], hidden: Tensor, forward: Forward) -> None:
    """Give every work that asks for them the log-probabilities of the prompt tokens behind its rows.

    ``works`` and ``hidden`` ``[rows, H]``: those of one pass, in order. Kept in the tenancy, for a repeated chunk.
    """
    first = 0
    for work in works:
        tenancy = work.tenancy
        if tenancy is not None and tenancy.sampling.prompt_logprobs is not None:
            tokens = _followers(work)[: max(tenancy.prompt_len - 1 - work.start, 0)]
            work.prompt_logprobs = _logprobs(
                hidden[first : first + len(tokens)], tokens, tenancy.sampling.prompt_logprobs, forward)
            tenancy.prefilled_from, tenancy.prompt_logprobs = work.start, work.prompt_logprobs
        first += len(work.token_ids)


def _followers(work: Work) -> list[int]:
    """The token behind each of a work's rows, as far as it is known."""
    behind = [work.next_token] if work.verification is None and work.next_token is not None else []
    return [*work.token_ids[1:], *behind]


def _logprobs(hidden: Tensor, tokens: Sequence[int], top: int, forward: Forward) -> tuple[TokenLogprobs, ...]:
    found: list[TokenLogprobs] = []
    for start in range(0, len(tokens), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        found += token_logprobs(forward.logits(hidden[some]), tokens[some], top)
    return tuple(found)
