"""Warm-up on a GPU: every kernel compiled and the usual graphs captured before the first request, nothing kept.

Kernels are compiled once for all row counts, so the sizes that are captured here are those that decoding meets; a
prompt's larger passes and longer contexts are captured when they first come. What all this takes of the GPU is measured
(``CudaForward.memory``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.engine.cuda_decoder import PassCache
from qspec.engine.cuda_forward import CudaForward
from qspec.engine.forward import DraftCache
from qspec.engine.row_buckets import ROW_BUCKETS
from qspec.interfaces import Progress
from qspec.kernels.triton.row_draws import DrawKind

_PROMPT_ROWS = (16, 32, 64, 128, 256)


def warm_up_verifier(
    forward: CudaForward, keys: Tensor, values: Tensor, distributions: Tensor, most_rows: int, progress: Progress
) -> None:
    """Passes of up to ``most_rows`` rows decided on in every way, larger ones greedily."""
    if forward.decoder.device.type != "cuda":
        return  # the interpreter compiles nothing
    cache, limits = PassCache(keys, values), forward.decoder.limits
    wanted = [rows for rows in ROW_BUCKETS if rows <= limits.rows and (rows <= most_rows or rows in _PROMPT_ROWS)]
    with forward.measured():
        for index, rows in enumerate(wanted):
            progress("compiling kernels and capturing graphs", index / len(wanted))
            inputs = forward.inputs.upload((), (), (), (), padded=rows)
            forward.launch("rows", inputs, cache, 1)
            for kind in DrawKind if rows <= most_rows or rows == wanted[-1] else (DrawKind.GREEDY,):
                forward.launch_decided(inputs, cache, 1, rows, kind, distributions)
            forward.greedy(torch.zeros(rows, forward.config.hidden_size, device=forward.decoder.device))
        progress("compiling kernels and capturing graphs", 1.0)


def warm_up_drafter(
    forward: CudaForward, cache: DraftCache, distributions: Tensor, most_rows: int, progress: Progress
) -> None:
    """Draft steps of up to ``most_rows`` sequences, drawn in every way."""
    if forward.decoder.device.type != "cuda":
        return
    wanted = [rows for rows in ROW_BUCKETS if rows <= min(most_rows, forward.decoder.limits.rows)]
    tails = PassCache(cache.keys, cache.values, cache.tail_keys, cache.tail_values)
    with forward.measured():
        for index, rows in enumerate(wanted):
            progress("compiling kernels and capturing graphs of drafts", index / len(wanted))
            inputs = forward.inputs.upload((), (), (), (), padded=rows)
            for kind in DrawKind:
                forward.draft_steps(inputs, tails, 1, 1, kind, distributions)
        progress("compiling kernels and capturing graphs of drafts", 1.0)
