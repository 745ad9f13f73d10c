"""The order in which linear layers over planes read their inputs.

A matrix instruction wants 16 inputs at a time, spread over the four threads of a quad in pairs (2t, 2t+1 and 2t+8,
2t+9). Weights are bytes here, and a thread that picked its pairs out of a row would load two bytes at a time. So a quad
shares 64 inputs: thread t takes the 16 adjacent bytes 16t … 16t+15 in one load, and the j-th four of them go into the
j-th instruction. The activations have to come in the same order, which costs nothing when the kernel that makes them
writes them so: input ``16t + 4j + e`` of each 64 lies at ``16j + 8(e // 2) + 2t + e % 2``.

A sum over inputs is the same sum in any order up to rounding; rounding is the same wherever this order is used.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

GROUP = 64
"""Inputs are rearranged within groups of this size."""


@triton.jit
def arranged(inputs):
    """Where input ``inputs`` lies in the order of the linear layers."""
    within = inputs % 64
    thread, step, high, low = within // 16, within // 4 % 4, within // 2 % 2, within % 2
    return inputs - within + step * 16 + high * 8 + thread * 2 + low


@triton.jit
def arrange_weights(weights, ROWS: tl.constexpr, INPUTS: tl.constexpr):
    """A tile ``[ROWS, INPUTS]`` with its inputs in that order: no instruction, only which thread has what."""
    split = weights.reshape(ROWS, INPUTS // 64, 4, 4, 2, 2)  # group, thread, step, high, low
    return split.permute(0, 1, 3, 4, 2, 5).reshape(ROWS, INPUTS)


def arrange(x: Tensor) -> Tensor:
    """``x`` ``[rows, K]`` in the order of the linear layers, a new tensor; K is a multiple of 64."""
    rows, inputs = x.shape
    split = x.reshape(rows, inputs // GROUP, 4, 4, 2, 2)
    return split.permute(0, 1, 3, 4, 2, 5).reshape(rows, inputs).contiguous()
