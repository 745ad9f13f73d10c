"""The forward on a GPU (``qspec.engine.forward.DraftForward``): passes as CUDA graphs over fixed buffers.

A pass is padded to a number of rows and to a number of attention's pieces that have a graph; padding rows belong to
nobody and write nothing. Batches with more rows than a pass holds are several passes, which changes no bit, because
every kernel of the verifier is row-invariant. Token ids come back; logits do where somebody samples, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from qspec.engine.cuda_buffers import attention_pieces
from qspec.engine.cuda_decoder import CudaDecoder, PassCache
from qspec.engine.forward import DraftCache, DraftContext
from qspec.engine.graph_cache import GraphCache
from qspec.engine.pass_inputs import PassInputs, StagedInputs
from qspec.engine.passes import SequenceRows
from qspec.engine.row_buckets import ROW_BUCKETS, padded_pieces, padded_rows
from qspec.interfaces import Progress
from qspec.kernels.triton.elementwise import Pieces
from qspec.kernels.triton.feedback import feed_back
from qspec.kernels.triton.greedy import greedy_tokens
from qspec.models.config import DecoderConfig
from qspec.quant.planes import HIGH_SCALE


class CudaForward:
    """``decoder`` behind the seam. Results that stay on the GPU are valid until the next pass."""

    def __init__(self, decoder: CudaDecoder, most_steps: int = 0) -> None:
        """``most_steps``: of a draft call."""
        self.decoder, self._limits = decoder, decoder.limits
        group = decoder.config.num_heads // decoder.config.num_kv_heads
        self._inputs = StagedInputs(decoder.limits, group, decoder.device)
        self._graphs = GraphCache(decoder.device)
        self._pieces = attention_pieces(decoder.limits.positions)
        self._history = torch.zeros(max(most_steps, 1) * decoder.limits.rows, dtype=torch.int32, device=decoder.device)

    @property
    def config(self) -> DecoderConfig:
        """See ``Forward``."""
        return self.decoder.config

    @property
    def graphs(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """See ``Forward``; the cache is fp16."""
        cache = PassCache(keys, values)
        passes = list(self._split(sequences))
        if len(passes) == 1:
            return self._rows(passes[0], cache)
        return torch.cat([self._rows(each, cache).clone() for each in passes])

    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Forward``; in host memory."""
        parts = [_added_up(self._head(part)).cpu() for part in hidden.split(self._limits.decided_rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def greedy(self, hidden: Tensor) -> list[int]:
        """See ``Forward``; the logits are never stored."""
        tokens: list[int] = []
        for part in hidden.split(self._limits.decided_rows):
            count = part.shape[0]
            rows = self._decided(part)

            def launch(rows: int = rows) -> None:
                product = self.decoder.head(rows, self.decoder.buffers.rows("decided", rows))
                greedy_tokens(product, self.decoder.buffers.chosen(rows))

            self._graphs.run(("greedy", rows), launch)
            tokens += self.decoder.buffers.chosen(count).tolist()
        return tokens

    def for_drafting(self) -> CudaForward:
        """See ``Forward``."""
        return self

    def computing(self) -> AbstractContextManager[object]:
        """See ``Forward``."""
        return nullcontext()

    def empty_cache(self, shape: tuple[int, ...]) -> Tensor:
        """See ``Forward``."""
        return torch.zeros(shape, dtype=torch.float16, device=self.decoder.device)

    def draft_pass(self, contexts: Sequence[DraftContext], cache: DraftCache) -> CudaDraftPass:
        """See ``DraftForward``."""
        return CudaDraftPass(self, contexts, PassCache(cache.keys, cache.values, cache.tail_keys, cache.tail_values))

    def warm_up(self, keys: Tensor, values: Tensor, most_rows: int, progress: Progress) -> None:
        """Compile the kernels of every size and capture graphs for up to ``most_rows`` rows; keeps nothing."""
        if self.decoder.device.type != "cuda":
            return  # the interpreter compiles nothing
        cache = PassCache(keys, values)
        wanted = [rows for rows in ROW_BUCKETS if rows <= self._limits.rows and (rows <= most_rows or rows in (
            16, 32, 64, 128, 256))]
        for index, rows in enumerate(wanted):
            progress("compiling kernels and capturing graphs", index / len(wanted))
            self._launch("rows", self._inputs.upload((), (), (), (), padded=rows), cache, 1)
            if rows <= self._limits.decided_rows:
                self.greedy(self.decoder.buffers.rows("residual", rows))
        progress("compiling kernels and capturing graphs", 1.0)

    def warm_up_drafts(self, cache: DraftCache, most_rows: int) -> None:
        """The same for draft steps."""
        if self.decoder.device.type != "cuda":
            return
        for rows in ROW_BUCKETS:
            if rows <= min(most_rows, self._limits.rows):
                tails = PassCache(cache.keys, cache.values, cache.tail_keys, cache.tail_values)
                self.draft_steps(self._inputs.upload((), (), (), (), padded=rows), tails, 1, 1)

    def draft_steps(self, inputs: PassInputs, cache: PassCache, pieces: int, steps: int) -> Tensor:
        """Feed each row's token, and then the one that it gives, ``steps`` times: tokens ``[steps, M]``."""
        rows = inputs.rows
        history = self._history[: len(self._history) // self._limits.rows * rows].view(-1, rows)

        def launch() -> None:
            self.decoder.hidden(inputs, cache, pieces)
            chosen = self.decoder.buffers.chosen(rows)
            greedy_tokens(self.decoder.head(rows), chosen)
            feed_back(chosen, inputs.token_ids, inputs.positions, history, inputs.step)

        for _ in range(steps):
            self._graphs.run(("draft", rows, pieces, cache.place), launch)
        return history[:steps]

    def draft_hidden(self, inputs: PassInputs, cache: PassCache, pieces: int) -> Tensor:
        """One draft step without a choice: ``[M, H]``."""
        return self._launch("draft hidden", inputs, cache, pieces)

    def upload_drafts(self, tokens: Mapping[int, int], contexts: Mapping[int, DraftContext], step: int) -> PassInputs:
        """Send a draft step of the slots in ``tokens``, padded."""
        chosen = [contexts[slot] for slot in tokens]
        return self._inputs.upload(
            list(tokens.values()), [each.length + step for each in chosen], [(each.slot, 1) for each in chosen],
            [(each.slot, each.block_ids) for each in chosen], [(each.slot, each.length) for each in chosen],
            padded=padded_rows(len(chosen)))

    def pieces_for(self, positions: int) -> int:
        """Attention's pieces for contexts of up to ``positions``, padded."""
        return padded_pieces(attention_pieces(positions), self._pieces)

    def _rows(self, sequences: Sequence[SequenceRows], cache: PassCache) -> Tensor:
        token_ids = [token for each in sequences for token in each.token_ids]
        positions = [position for each in sequences
                     for position in range(each.start, each.start + len(each.token_ids))]
        inputs = self._inputs.upload(
            token_ids, positions, [(index, len(each.token_ids)) for index, each in enumerate(sequences)],
            [(index, each.span.block_ids) for index, each in enumerate(sequences)], padded=padded_rows(len(token_ids)))
        pieces = self.pieces_for(max(positions) + 1)
        return self._launch("rows", inputs, cache, pieces)[: len(token_ids)]

    def _launch(self, kind: str, inputs: PassInputs, cache: PassCache, pieces: int) -> Tensor:
        launch: Callable[[], object] = lambda: self.decoder.hidden(inputs, cache, pieces)  # noqa: E731
        self._graphs.run((kind, inputs.rows, pieces, cache.place), launch)
        return self.decoder.buffers.rows("residual", inputs.rows)

    def _split(self, sequences: Sequence[SequenceRows]) -> list[list[SequenceRows]]:
        """Sequences in passes of at most as many rows and sequences as the limits allow."""
        passes: list[list[SequenceRows]] = [[]]
        room = self._limits.rows
        for sequence in sequences:
            at = 0
            while at < len(sequence.token_ids):
                if not room or len(passes[-1]) == self._limits.sequences:
                    passes.append([])
                    room = self._limits.rows
                taken = sequence.token_ids[at : at + room]
                passes[-1].append(SequenceRows(taken, sequence.start + at, sequence.span))
                at, room = at + len(taken), room - len(taken)
        return passes

    def _decided(self, hidden: Tensor) -> int:
        """Copy rows to where ``lm_head``'s graph reads them; how many it computes."""
        count = hidden.shape[0]
        self.decoder.buffers.rows("decided", count).copy_(hidden)
        return min(padded_rows(count), self._limits.decided_rows)

    def _head(self, hidden: Tensor) -> Pieces:
        rows = hidden.shape[0]
        self._decided(hidden)
        return self.decoder.head(rows, self.decoder.buffers.rows("decided", rows))


class CudaDraftPass:
    """``qspec.engine.forward.GreedyDraftPass``: some steps for the same sequences."""

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
            columns = drafted.t().tolist()  # waits for the GPU
            drafts.update(zip(part, columns, strict=False))  # behind them is padding
        return drafts

    def _split(self, tokens: Mapping[int, int]) -> list[dict[int, int]]:
        """Slots in passes of as many rows as the limits allow."""
        items, most = list(tokens.items()), self._forward.decoder.limits.rows
        return [dict(items[at : at + most]) for at in range(0, len(items), most)]

    def _pieces(self, tokens: Mapping[int, int]) -> int:
        """Of the longest committed context; the tail is a piece of its own."""
        return self._forward.pieces_for(max(self._contexts[slot].length for slot in tokens))


def _added_up(product: Pieces) -> Tensor:
    """The logits ``[M, V]`` of ``lm_head``'s product, in the order of ``elementwise.read_product``."""
    total = product.numbers[0].float()
    for piece in product.numbers[1:]:
        total = total + piece
    scales = product.scales
    if product.token_scales is not None:
        scales = scales * (product.token_scales[:, None] * HIGH_SCALE)
    return total * scales
