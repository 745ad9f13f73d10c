"""What passes on a GPU compute in: allocated once, at fixed addresses, so that a captured graph can be replayed.

Sizes are computed before anything is allocated, because the memory budget has to be known first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qspec.engine.row_buckets import padded_rows
from qspec.kernels.triton.activation_forms import Form
from qspec.kernels.triton.attention import PIECE, AttentionWorkspace
from qspec.kernels.triton.device_limits import device_limits
from qspec.kernels.triton.elementwise import Activations
from qspec.kernels.triton.tuned import TunedTable, table_for
from qspec.models.config import DecoderConfig

MOST_ROWS = 256
"""Most rows of one pass; longer batches are several."""
_WORKSPACE_BYTES = 256 << 20
"""What attention's pieces may take before passes get fewer rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimits:
    """The largest pass that a worker makes at once."""

    rows: int
    sequences: int
    """Rows of the block table."""
    positions: int
    """Longest context, tail included."""
    block_size: int

    @classmethod
    def of(
        cls, model: DecoderConfig, *, rows: int, sequences: int, positions: int, block_size: int
    ) -> PassLimits:
        """As many rows as are asked for, or as fit into what passes may take."""
        per_row = 4 * (attention_pieces(positions) + 1) * model.num_heads * (model.head_dim + 2)
        fitting = max(_WORKSPACE_BYTES // per_row, 1)
        rows = padded_rows(min(rows, MOST_ROWS))
        while rows > fitting and rows > 1:
            rows = padded_rows(max(rows // 2, 1))
        return cls(rows=rows, sequences=sequences, positions=positions, block_size=block_size)

    @property
    def blocks(self) -> int:
        """Columns of the block table."""
        return -(-self.positions // self.block_size)


def attention_pieces(positions: int) -> int:
    """How many pieces a context is attended in."""
    return -(-positions // PIECE)


@lru_cache(maxsize=1)
def gpu_table() -> TunedTable:
    """The tuned kernels of this GPU, with tiles that it has room for; Hopper's where kernels are interpreted."""
    limits = device_limits()
    return table_for(limits.capability).within(limits)


class PassBuffers:
    """Buffers for passes up to ``limits``; a pass of M rows uses the beginning of each."""

    def __init__(
        self, model: DecoderConfig, limits: PassLimits, linears: Mapping[str, tuple[int, int]], device: torch.device
    ) -> None:
        sizes = _sizes(model, limits, linears, gpu_table())
        self._flat = {
            name: torch.zeros(count, dtype=dtype, device=device) for name, (count, dtype) in sizes.items()
        }
        self._one_row = {"residual": model.hidden_size, "normed": model.hidden_size, "normed8": model.hidden_size,
                         "middle": model.intermediate_size, "middle8": model.intermediate_size,
                         "attended": model.num_heads * model.head_dim, "decided": model.hidden_size}
        self._heads, self._head_dim = model.num_heads, model.head_dim
        pieces = attention_pieces(limits.positions) + 1
        shape = (pieces, limits.rows, model.num_heads)
        self.workspace = AttentionWorkspace(
            self._flat["sums"].view(*shape, model.head_dim), self._flat["maxima"].view(shape),
            self._flat["totals"].view(shape), PIECE)

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(tensor.nbytes for tensor in self._flat.values())

    def rows(self, name: str, count: int) -> Tensor:
        """The first ``count`` rows of a buffer: ``[count, width]``."""
        width = self._one_row[name]
        return self._flat[name][: count * width].view(count, width)

    def activations(self, name: str, count: int, form: Form) -> Activations:
        """Room for what a linear layer reads."""
        if form is Form.HALF:
            return Activations(self.rows(name, count), None)
        scales = self._flat[f"{name}_scales"][:count]
        if form is Form.INT8_AS_HALF:
            return Activations(self.rows(name, count), scales)
        values = self.rows(f"{name}8", count)
        return Activations(values if form is Form.E4M3 else values.view(torch.int8), scales)

    def queries(self, count: int) -> Tensor:
        """``[count, heads, D]`` fp16."""
        return self._flat["queries"][: count * self._heads * self._head_dim].view(count, self._heads, self._head_dim)

    def pieces(self, split: int, count: int, outputs: int) -> Tensor:
        """A product before it is added up: ``[split, count, outputs]`` fp32."""
        return self._flat["pieces"][: split * count * outputs].view(split, count, outputs)

    def chosen(self, count: int) -> Tensor:
        """``[count]`` int32: tokens."""
        return self.verdicts(count)[0]

    def verdicts(self, count: int) -> Tensor:
        """``[2, count]`` int32: tokens, and whether what was drafted in their places stands."""
        return self._flat["verdicts"][: 2 * count].view(2, count)


def buffer_bytes(model: DecoderConfig, limits: PassLimits, linears: Mapping[str, tuple[int, int]]) -> int:
    """What ``PassBuffers`` takes."""
    sizes = _sizes(model, limits, linears, gpu_table())
    return sum(count * dtype.itemsize for count, dtype in sizes.values())


def _sizes(
    model: DecoderConfig, limits: PassLimits, linears: Mapping[str, tuple[int, int]], table: TunedTable
) -> dict[str, tuple[int, torch.dtype]]:
    """Numbers and types; ``linears``: ``(in, out)`` of each linear layer by name."""
    rows, hidden, middle = limits.rows, model.hidden_size, model.intermediate_size
    attended = model.num_heads * model.head_dim
    numbers = max(
        _most_pieces(table, outputs, inputs) * outputs * rows for inputs, outputs in linears.values())
    pieces = (attention_pieces(limits.positions) + 1) * rows * model.num_heads
    half, single, quarter = torch.float16, torch.float32, torch.float8_e4m3fn
    return {
        "residual": (rows * hidden, single),
        "decided": (rows * hidden, single),
        "normed": (rows * hidden, half),
        "normed8": (rows * hidden, quarter),
        "normed_scales": (rows, single),
        "middle": (rows * middle, half),
        "middle8": (rows * middle, quarter),
        "middle_scales": (rows, single),
        "queries": (rows * attended, half),
        "attended": (rows * attended, half),
        "pieces": (numbers, single),
        "sums": (math.prod((pieces, model.head_dim)), single),
        "maxima": (pieces, single),
        "totals": (pieces, single),
        "verdicts": (2 * rows, torch.int32),
    }


def _most_pieces(table: TunedTable, outputs: int, inputs: int) -> int:
    """Of a product over both planes or over one."""
    tuning = table.linear(outputs, inputs)
    return max(tuning.both.split, tuning.high.split)
