"""Warm-up on a GPU: every kernel compiled and the usual graphs captured before the first request, nothing kept.

A capture takes some twenty milliseconds, which a request would notice and the cost table would take for a call's cost.
So every padded number of rows is captured here, decided on in every way that requests can ask for, over contexts of up
to ``row_buckets``' least pieces; longer ones are captured when they first come. What all this takes of the GPU is
measured (``CudaForward.memory``).
"""

from __future__ import annotations

from torch import Tensor

from qspec.engine.cuda_decoder import PassCache
from qspec.engine.cuda_forward import CudaForward
from qspec.engine.forward import DraftCache
from qspec.engine.row_buckets import ROW_BUCKETS, decided_buckets, padded_rows
from qspec.interfaces import Progress
from qspec.kernels.triton.row_draws import DrawKind


def warm_up_verifier(
    forward: CudaForward, keys: Tensor, values: Tensor, distributions: Tensor, progress: Progress
) -> None:
    """Passes of all sizes, without decisions and with any."""
    if forward.decoder.device.type != "cuda":
        return  # the interpreter compiles nothing
    cache, pieces = PassCache(keys, values), forward.pieces_for(1)
    wanted = [rows for rows in ROW_BUCKETS if rows <= forward.decoder.limits.rows]
    with forward.measured():
        for index, rows in enumerate(wanted):
            progress("compiling kernels and capturing graphs", index / len(wanted))
            inputs = forward.inputs.upload((), (), (), (), padded=rows)
            forward.launch("rows", inputs, cache, pieces)
            for decided in decided_buckets(rows):
                for kind in DrawKind:
                    forward.launch_decided(inputs, cache, pieces, decided, kind, distributions)
        progress("compiling kernels and capturing graphs", 1.0)


def warm_up_drafter(
    forward: CudaForward, cache: DraftCache, distributions: Tensor, most_rows: int, progress: Progress
) -> None:
    """Draft steps of up to ``most_rows`` sequences, drawn in every way."""
    if forward.decoder.device.type != "cuda":
        return
    wanted = [rows for rows in ROW_BUCKETS if rows <= min(padded_rows(most_rows), forward.decoder.limits.rows)]
    tails, pieces = PassCache(cache.keys, cache.values, cache.tail_keys, cache.tail_values), forward.pieces_for(1)
    with forward.measured():
        for index, rows in enumerate(wanted):
            progress("compiling kernels and capturing graphs of drafts", index / len(wanted))
            inputs = forward.inputs.upload((), (), (), (), padded=rows)
            for kind in DrawKind:
                forward.draft_steps(inputs, tails, pieces, 1, kind, distributions)
        progress("compiling kernels and capturing graphs of drafts", 1.0)
