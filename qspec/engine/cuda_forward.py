"""The forward on a GPU (``qspec.engine.forward.DraftForward``): passes as CUDA graphs over fixed buffers.

A pass is padded to a number of rows and to a number of attention's pieces that have a graph; padding rows belong to
nobody and write nothing. Batches with more rows than a pass holds are several passes, which changes no bit, because
every kernel of the verifier is row-invariant. A verify pass with its decisions is one replay, ``lm_head`` included;
token ids come back, and logits do for requests that the host decides on alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.engine.cuda_buffers import attention_pieces
from qspec.engine.cuda_decoder import CudaDecoder, PassCache
from qspec.engine.forward import DraftCache, DraftContext
from qspec.engine.graph_cache import GraphCache
from qspec.engine.pass_inputs import PassInputs, StagedInputs
from qspec.engine.passes import SequenceRows, split_passes
from qspec.engine.row_buckets import decided_bucket, padded_pieces, padded_rows
from qspec.interfaces import MemoryItem, Sampling
from qspec.kernels.triton.draws import DrawPlan, draw_tokens
from qspec.kernels.triton.elementwise import Pieces
from qspec.kernels.triton.feedback import feed_back
from qspec.kernels.triton.greedy import greedy_tokens
from qspec.kernels.triton.row_draws import (
    DrawKind,
    Field,
    PlacedDraw,
    RowDraw,
    RowVerdict,
    draw_kind,
    drawn_on_gpu,
)
from qspec.memory.device_usage import free_bytes
from qspec.models.config import DecoderConfig
from qspec.quant.planes import HIGH_SCALE

if TYPE_CHECKING:
    from qspec.engine.cuda_draft_pass import CudaDraftPass


class CudaForward:
    """``decoder`` behind the seam. Results that stay on the GPU are valid until the next pass."""

    def __init__(self, decoder: CudaDecoder, most_steps: int = 0) -> None:
        """``most_steps``: of a draft call."""
        self.decoder, self._limits = decoder, decoder.limits
        group = decoder.config.num_heads // decoder.config.num_kv_heads
        self._inputs = StagedInputs(decoder.limits, group, decoder.device)
        self._graphs = GraphCache(decoder.device)
        self._pieces = attention_pieces(decoder.limits.positions)
        self._warm_up_bytes = 0
        self._history = torch.zeros(max(most_steps, 1) * decoder.limits.rows, dtype=torch.int32, device=decoder.device)
        self._buffer_bytes = max(decoder.free_before - free_bytes(decoder.device), decoder.buffers.bytes)

    @property
    def config(self) -> DecoderConfig:
        """See ``Forward``."""
        return self.decoder.config

    @property
    def inputs(self) -> StagedInputs:
        """Where passes are staged."""
        return self._inputs

    @property
    def graphs(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    @property
    def memory(self) -> tuple[MemoryItem, ...]:
        """See ``DecidingForward``: by how much the device's free memory shrank as buffers were made, and as graphs were
        captured. Torch takes up to 20 MB at once, and what it has left of that is nobody else's.
        """
        taken = self._warm_up_bytes + self._graphs.bytes
        return (
            MemoryItem(name="buffers of passes", bytes=self._buffer_bytes, shared=False),
            MemoryItem(name=f"kernels and {self.graphs} CUDA graphs, as measured", bytes=taken, shared=False),
        )

    def rows(self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor) -> Tensor:
        """See ``Forward``; the cache is fp16."""
        cache = PassCache(keys, values)
        passes = list(self._split(sequences))
        if len(passes) == 1:
            return self._rows(passes[0], cache)
        return torch.cat([self._rows(each, cache).clone() for each in passes])

    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Forward``; in host memory."""
        parts = [_added_up(self._head(part)).cpu() for part in hidden.split(self._limits.rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def greedy(self, hidden: Tensor) -> list[int]:
        """See ``Forward``; the logits are never stored."""
        tokens: list[int] = []
        for part in hidden.split(self._limits.rows):
            count = part.shape[0]
            rows = self._decided(part)

            def launch(rows: int = rows) -> None:
                product = self.decoder.head(rows, self.decoder.buffers.rows("decided", rows))
                greedy_tokens(product, self.decoder.buffers.chosen(rows))

            self._graphs.run(("greedy", rows), launch)
            tokens += self.decoder.buffers.chosen(count).tolist()
        return tokens

    def decides(self, sampling: Sampling) -> bool:
        """See ``DecidingForward``."""
        return drawn_on_gpu(sampling)

    def decided_rows(
        self, sequences: Sequence[SequenceRows], keys: Tensor, values: Tensor, draws: Sequence[RowDraw | None],
        distributions: Tensor,
    ) -> tuple[Tensor, list[RowVerdict | None]]:
        """See ``DecidingForward``."""
        cache, first = PassCache(keys, values), 0
        passes = self._split(sequences)
        hidden: list[Tensor] = []
        verdicts: list[RowVerdict | None] = []
        for each in passes:
            count = sum(len(sequence.token_ids) for sequence in each)
            rows, said = self._decide(each, cache, draws[first : first + count], distributions)
            hidden.append(rows if len(passes) == 1 else rows.clone())
            verdicts += said
            first += count
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden), verdicts

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
        from qspec.engine.cuda_draft_pass import CudaDraftPass

        return CudaDraftPass(self, contexts, PassCache(cache.keys, cache.values, cache.tail_keys, cache.tail_values))

    def draft_steps(
        self, inputs: PassInputs, cache: PassCache, pieces: int, steps: int, kind: DrawKind = DrawKind.GREEDY,
        distributions: Tensor | None = None,
    ) -> Tensor:
        """Feed each row's token, and then the one that is drawn, ``steps`` times: tokens ``[steps, M]``.

        ``distributions``: ``[slots, k_max, V]``, where rows of ``kind`` FILTERED may need them.
        """
        rows = inputs.rows
        history = self._history[: len(self._history) // self._limits.rows * rows].view(-1, rows)
        plan = DrawPlan(inputs.draws, inputs.positions, distributions, inputs.step)

        def launch() -> None:
            self.decoder.hidden(inputs, cache, pieces)
            chosen = self.decoder.buffers.chosen(rows)
            product = self.decoder.head(rows)
            if kind is DrawKind.GREEDY:
                greedy_tokens(product, chosen)
            else:
                draw_tokens(product, plan, kind, self._scaled(rows), chosen)
            feed_back(chosen, inputs.token_ids, inputs.positions, history, inputs.step)

        for _ in range(steps):
            self._graphs.run(("draft", rows, pieces, cache.place, kind, _place(kind, distributions)), launch)
        return history[:steps]

    def draft_hidden(self, inputs: PassInputs, cache: PassCache, pieces: int) -> Tensor:
        """One draft step without a choice: ``[M, H]``."""
        return self.launch("draft hidden", inputs, cache, pieces)

    def upload_drafts(
        self, tokens: Mapping[int, int], contexts: Mapping[int, DraftContext], step: int,
        draws: Mapping[int, RowDraw] | None = None,
    ) -> PassInputs:
        """Send a draft step of the slots in ``tokens``, padded; ``draws``: how their tokens are drawn."""
        chosen = [contexts[slot] for slot in tokens]
        placed = [PlacedDraw(row, row, draws[slot]) for row, slot in enumerate(tokens)] if draws is not None else []
        return self._inputs.upload(
            list(tokens.values()), [each.length + step for each in chosen], [(each.slot, 1) for each in chosen],
            [(each.slot, each.block_ids) for each in chosen], [(each.slot, each.length) for each in chosen],
            padded=padded_rows(len(chosen)), draws=placed)

    def pieces_for(self, positions: int) -> int:
        """Attention's pieces for contexts of up to ``positions``, padded."""
        return padded_pieces(attention_pieces(positions), self._pieces)

    def _rows(self, sequences: Sequence[SequenceRows], cache: PassCache) -> Tensor:
        inputs, count, pieces = self._upload(sequences, ())
        return self.launch("rows", inputs, cache, pieces)[:count]

    def _decide(
        self, sequences: Sequence[SequenceRows], cache: PassCache, draws: Sequence[RowDraw | None],
        distributions: Tensor,
    ) -> tuple[Tensor, list[RowVerdict | None]]:
        """One pass and its verdicts."""
        asked = [row for row, draw in enumerate(draws) if draw is not None]
        verdicts: list[RowVerdict | None] = [None] * len(draws)
        if not asked:
            return self._rows(sequences, cache), verdicts
        padded = padded_rows(len(draws))
        decided = decided_bucket(len(asked), padded)
        columns = asked if decided == padded else range(len(asked))
        placed = [PlacedDraw(column, row, draw) for column, row in zip(columns, asked, strict=True)
                  if (draw := draws[row]) is not None]
        inputs, count, pieces = self._upload(sequences, placed)
        kind = draw_kind([each.draw.sampling for each in placed])
        self.launch_decided(inputs, cache, pieces, decided, kind, distributions)
        tokens, stands = self.decoder.buffers.verdicts(decided).tolist()  # waits for the GPU
        for column, row in zip(columns, asked, strict=True):
            verdicts[row] = RowVerdict(bool(stands[column]), tokens[column])
        return self.decoder.buffers.rows("residual", padded)[:count], verdicts

    def launch_decided(
        self, inputs: PassInputs, cache: PassCache, pieces: int, decided: int, kind: DrawKind, distributions: Tensor
    ) -> None:
        """A pass with the verdicts of ``decided`` rows: of all, or of those that the draws name."""
        buffers = self.decoder.buffers
        plan = DrawPlan(inputs.draws, inputs.draws[Field.POSITION], distributions)

        def launch() -> None:
            residual = self.decoder.hidden(inputs, cache, pieces)
            gathered = None
            if decided < inputs.rows:
                gathered = buffers.rows("decided", decided)
                torch.index_select(residual, 0, inputs.draws[Field.ROW][:decided], out=gathered)
            product = self.decoder.head(decided, gathered)
            chosen, stands = buffers.verdicts(decided)
            draw_tokens(product, plan, kind, self._scaled(decided), chosen, stands)

        place = _place(kind, distributions)
        self._graphs.run(("decided", inputs.rows, decided, pieces, cache.place, kind, place), launch)

    def _scaled(self, rows: int) -> Tensor:
        """Where logits over temperatures are kept: in the place of a product's first piece."""
        return self.decoder.buffers.pieces(1, rows, self.config.vocab_size)[0]

    def _upload(
        self, sequences: Sequence[SequenceRows], draws: Sequence[PlacedDraw]
    ) -> tuple[PassInputs, int, int]:
        """A pass on the device; its rows without padding, and attention's pieces."""
        token_ids = [token for each in sequences for token in each.token_ids]
        positions = [position for each in sequences
                     for position in range(each.start, each.start + len(each.token_ids))]
        inputs = self._inputs.upload(
            token_ids, positions, [(index, len(each.token_ids)) for index, each in enumerate(sequences)],
            [(index, each.span.block_ids) for index, each in enumerate(sequences)], padded=padded_rows(len(token_ids)),
            draws=draws)
        return inputs, len(token_ids), self.pieces_for(max(positions) + 1)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around a warm-up: notes by how much the device's free memory changed."""
        self._graphs.counts = False
        before = free_bytes(self.decoder.device)
        yield
        torch.cuda.synchronize()
        self._warm_up_bytes += max(before - free_bytes(self.decoder.device), 0)
        self._graphs.counts = True

    def launch(self, kind: str, inputs: PassInputs, cache: PassCache, pieces: int) -> Tensor:
        """Layers alone: the residual stream ``[M, H]``."""
        run: Callable[[], object] = lambda: self.decoder.hidden(inputs, cache, pieces)  # noqa: E731
        self._graphs.run((kind, inputs.rows, pieces, cache.place), run)
        return self.decoder.buffers.rows("residual", inputs.rows)

    def _split(self, sequences: Sequence[SequenceRows]) -> list[list[SequenceRows]]:
        return split_passes(sequences, rows=self._limits.rows, sequences_each=self._limits.sequences)

    def _decided(self, hidden: Tensor) -> int:
        """Copy rows to where ``lm_head``'s graph reads them; how many it computes."""
        count = hidden.shape[0]
        self.decoder.buffers.rows("decided", count).copy_(hidden)
        return padded_rows(count)

    def _head(self, hidden: Tensor) -> Pieces:
        rows = hidden.shape[0]
        self._decided(hidden)
        return self.decoder.head(rows, self.decoder.buffers.rows("decided", rows))


def _place(kind: DrawKind, distributions: Tensor | None) -> int:
    """Tells draft distributions from others, for graphs that were captured over them."""
    return distributions.data_ptr() if kind is DrawKind.FILTERED and distributions is not None else 0


def _added_up(product: Pieces) -> Tensor:
    """The logits ``[M, V]`` of ``lm_head``'s product, in the order of ``elementwise.read_product``."""
    total = product.numbers[0].float()
    for piece in product.numbers[1:]:
        total = total + piece
    scales = product.scales
    if product.token_scales is not None:
        scales = scales * (product.token_scales[:, None] * HIGH_SCALE)
    return total * scales
