"""The token of each row's largest logit, straight from the pieces of ``lm_head``'s product: logits are never stored.

Blocks of the vocabulary find their largest, then one program a row the largest of those; of equals the lowest token, as
``torch.argmax`` over one row on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.elementwise import Pieces, read_product
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs

_BLOCK = 2048


@triton.jit(do_not_specialize=["M"])
def _largest_of_blocks(
    pieces, scales, token_scales, largest, tokens, M, width,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < width
    scale = tl.load(scales + token, mask=inside, other=0.0)
    wait_for_inputs(OVERLAP)
    logits = read_product(pieces, scale, token_scales, row, token, width, M, inside, PIECES, TOKENS)
    logits = tl.where(inside, logits, float("-inf"))
    to = row * tl.num_programs(1) + block
    tl.store(largest + to, tl.max(logits, 0))
    tl.store(tokens + to, block * BLOCK + tl.argmax(logits, 0))


@triton.jit
def _largest_of_row(largest, tokens, out, blocks, BLOCKS: tl.constexpr, OVERLAP: tl.constexpr):
    wait_for_inputs(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    values = tl.load(largest + row * blocks + block, mask=block < blocks, other=float("-inf"))
    tl.store(out + row, tl.load(tokens + row * blocks + tl.argmax(values, 0)))


def greedy_tokens(logits: Pieces, out: Tensor) -> None:
    """Write the token of each row of ``lm_head``'s product ``[M, V]`` to ``out`` ``[M]`` (int32)."""
    _, rows, width = logits.numbers.shape
    blocks, device = triton.cdiv(width, _BLOCK), out.device
    largest = torch.empty(rows, blocks, dtype=torch.float32, device=device)
    tokens = torch.empty(rows, blocks, dtype=torch.int32, device=device)
    _largest_of_blocks[(rows, blocks)](
        *logits.pointers(), largest, tokens, rows, width, PIECES=logits.count,
        TOKENS=logits.token_scales is not None, BLOCK=_BLOCK, num_warps=4, **launch_options())
    _largest_of_row[(rows,)](
        largest, tokens, out, blocks, BLOCKS=triton.next_power_of_2(blocks), num_warps=1, **launch_options())
