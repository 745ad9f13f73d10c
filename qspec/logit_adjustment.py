"""What a request does to logits before anything is drawn from them: bias, penalties by history, bans.

Pure functions on the rows of one sequence. Every row has a history of its own: the committed tokens and the drafts
before it, so a drafted position is treated as it will be once it is committed. Drafter and verifier call the same
function with the same history, before the filters (``qspec.filters``) and before the argmax of greedy decoding.

Order, as in vLLM: bias; repetition penalty; frequency and presence penalty; ban of the ending tokens. The repetition
penalty counts the prompt and what was generated (Keskar et al. 2019, "CTRL", section 4.1; transformers and vLLM alike),
the other two what was generated (OpenAI's completion API; vLLM). Everything is element by element on the few columns
that a request touches, so a row's bits do not depend on the rows beside it.

A grammar masks the target alone, behind this: in the verifier, between draft and acceptance, row by row, with the same
histories (``qspec.target_mask``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.sampling_options import Sampling


@dataclass(frozen=True, slots=True)
class DraftHistory:
    """What a sequence's drafts follow."""

    committed: Tensor
    """int64 ``[n]``."""
    prompt_len: int

    def adjust(self, logits: Tensor, sampling: Sampling, drafted: Sequence[int]) -> Tensor:
        """The logits of the token behind those that were drafted: ``[1, vocab] -> [1, vocab]``."""
        tokens = torch.cat([self.committed, torch.tensor(drafted, dtype=torch.int64)])
        return adjust(logits, sampling, tokens, self.prompt_len)


def adjust(logits: Tensor, sampling: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
    """The logits that tokens are drawn from.

    Args:
        logits: the model's, ``[rows, vocab]`` float, for adjacent positions; left as they are.
        sampling: what to do to them.
        tokens: int64 ``[n]``, ``n >= rows - 1``: history of the last row. Each row before has one token less.
        prompt_len: leading tokens that were not generated; at most the first row's history.

    Returns ``[rows, vocab]``: the logits themselves where nothing is asked for.
    """
    if not sampling.adjusts_logits:
        return logits
    adjusted = logits.clone()
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        adjusted[:, list(ids)] += logits.new_tensor(biases)
    if sampling.penalises:
        _penalise(adjusted, sampling, tokens, prompt_len)
    first_generated = len(tokens) - len(logits) + 1 - prompt_len  # tokens generated before the first row's
    banned_rows = min(max(sampling.min_tokens - first_generated, 0), len(logits))
    if banned_rows:
        adjusted[:banned_rows, list(sampling.ending_token_ids)] = float("-inf")
    return adjusted


def _penalise(logits: Tensor, sampling: Sampling, tokens: Tensor, prompt_len: int) -> None:
    """Repetition, frequency and presence penalty, in place."""
    rows, first = len(logits), len(tokens) - len(logits) + 1  # ``first``: length of the first row's history
    ids, columns = tokens.unique(return_inverse=True)
    later = torch.zeros(rows, len(ids), dtype=torch.int64)  # how often each id comes between the first row and a row
    later[torch.arange(1, rows), columns[first:]] = 1
    later = later.cumsum(0)
    seen = torch.bincount(columns[:first], minlength=len(ids)) + later > 0  # [rows, ids]
    generated = torch.bincount(columns[prompt_len:first], minlength=len(ids)) + later
    values = logits[:, ids]
    repeated = torch.where(values < 0, values * sampling.repetition_penalty, values / sampling.repetition_penalty)
    values = torch.where(seen, repeated, values)
    values -= sampling.frequency_penalty * generated.to(values.dtype)
    values -= sampling.presence_penalty * (generated > 0).to(values.dtype)
    logits[:, ids] = values
