"""A draft call on a GPU: steps that feed their own tokens, so that k of them are k replays and one wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qspec.engine.cuda_decoder import PassCache
from qspec.engine.cuda_forward import CudaForward
from qspec.engine.forward import DraftContext
from qspec.interfaces import Sampling
from qspec.kernels.triton.row_draws import RowDraw, draw_kind, drawn_on_gpu


class CudaDraftPass:
    """``qspec.engine.forward.SamplingDraftPass``: some steps for the same sequences."""

    def __init__(self, forward: CudaForward, contexts: Sequence[DraftContext], cache: PassCache) -> None:
        self._forward, self._cache = forward, cache
        self._contexts = {context.slot: context for context in contexts}

    def step(self, tokens: Mapping[int, int], step: int) -> Tensor:
        """See ``DraftPass``."""
        parts = []
        for part in self._split(tokens):
            inputs = self._forward.upload_drafts(part, self._contexts, step)
            parts.append(self._forward.draft_hidden(inputs, self._cache, self._pieces(part))[: len(part)])
            if len(part) == len(tokens):
                return parts[0]
            parts[-1] = parts[-1].clone()
        return torch.cat(parts)

    def greedy_steps(self, tokens: Mapping[int, int], steps: int) -> dict[int, list[int]]:
        """See ``GreedyDraftPass``."""
        drafts: dict[int, list[int]] = {}
        for part in self._split(tokens):
            inputs = self._forward.upload_drafts(part, self._contexts, 0)
            drafted = self._forward.draft_steps(inputs, self._cache, self._pieces(part), steps)
            drafts.update(_columns(part, drafted))
        return drafts

    def sampled_steps(
        self, tokens: Mapping[int, int], samplings: Mapping[int, Sampling], steps: int, distributions: Tensor
    ) -> dict[int, list[int]] | None:
        """See ``SamplingDraftPass``."""
        if not all(drawn_on_gpu(samplings[slot], telling=False) for slot in tokens):
            return None
        longest = distributions.shape[1]
        drafts: dict[int, list[int]] = {}
        for part in self._split(tokens):
            draws = {slot: RowDraw(sampling=samplings[slot], distribution=slot * longest) for slot in part}
            inputs = self._forward.upload_drafts(part, self._contexts, 0, draws)
            kind = draw_kind([draw.sampling for draw in draws.values()])
            drafted = self._forward.draft_steps(inputs, self._cache, self._pieces(part), steps, kind, distributions)
            drafts.update(_columns(part, drafted))
        return drafts

    def _split(self, tokens: Mapping[int, int]) -> list[dict[int, int]]:
        """Slots in passes of as many rows as the limits allow."""
        items, most = list(tokens.items()), self._forward.decoder.limits.rows
        return [dict(items[at : at + most]) for at in range(0, len(items), most)]

    def _pieces(self, tokens: Mapping[int, int]) -> int:
        """Of the longest committed context; the tail is a piece of its own."""
        return self._forward.pieces_for(max(self._contexts[slot].length for slot in tokens))


def _columns(slots: Mapping[int, int], drafted: Tensor) -> dict[int, list[int]]:
    """Tokens by slot, of ``[steps, rows]``; waits for the GPU."""
    return dict(zip(slots, drafted.t().tolist(), strict=False))  # behind them is padding
