"""Between two draft steps: the chosen tokens become the next step's input, so that no step waits for the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.overlap import launch_options, wait_for_inputs


@triton.jit(do_not_specialize=["rows"])
def _feed_back_kernel(
    chosen, token_ids, positions, history, step, rows, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row = tl.arange(0, BLOCK)
    inside = row < rows
    now = tl.load(step)
    token = tl.load(chosen + row, mask=inside, other=0)
    tl.store(history + now * rows + row, token, mask=inside)
    tl.store(token_ids + row, token, mask=inside)
    tl.store(positions + row, tl.load(positions + row, mask=inside, other=0) + 1, mask=inside)
    tl.debug_barrier()  # every thread has read the number of the step before it changes
    tl.store(step, now + 1)


def feed_back(chosen: Tensor, token_ids: Tensor, positions: Tensor, history: Tensor, step: Tensor) -> None:
    """Note the ``chosen`` tokens ``[M]`` in ``history`` ``[steps, M]``, feed them, and move on; all int32.

    ``token_ids``, ``positions`` ``[M]`` and ``step`` ``[1]`` are what the next step reads.
    """
    rows = chosen.shape[0]
    _feed_back_kernel[(1,)](
        chosen, token_ids, positions, history, step, rows, BLOCK=triton.next_power_of_2(rows), num_warps=4,
        **launch_options())
