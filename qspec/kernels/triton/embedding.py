"""Token embeddings as the residual stream's first rows: out of both planes of a tied ``lm_head``, or of fp16 rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.plane_linear import PlaneWeight
from qspec.kernels.triton.planes import merge_planes

_BLOCK = 1024


@triton.jit
def _embed_kernel(
    token_ids, high, low, scales, residual, width, stride,
    PLANES: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    token = tl.load(token_ids + row).to(tl.int64)
    from_ = token * stride + at
    if PLANES:
        merged = merge_planes(tl.load(high + from_, mask=inside, other=0), tl.load(low + from_, mask=inside, other=0))
        values = merged.to(tl.float32) * tl.load(scales + token)
    else:
        values = tl.load(high + from_, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row * width + at, values, mask=inside)


def embed(token_ids: Tensor, embedding: PlaneWeight | Tensor, residual: Tensor) -> None:
    """Write the embeddings of ``token_ids`` ``[M]`` (int32) to ``residual`` ``[M, H]`` (fp32).

    ``embedding``: both planes of a weight ``[V, H]``, or a tensor of that shape.
    """
    rows, width = residual.shape
    if isinstance(embedding, PlaneWeight):
        high, low, scales = embedding.high, embedding.low, embedding.scales
    else:
        high, low, scales = embedding, None, embedding
    _embed_kernel[(rows, triton.cdiv(width, _BLOCK))](
        token_ids, high, high if low is None else low, scales, residual, width, high.stride(0),
        PLANES=low is not None, BLOCK=_BLOCK, num_warps=4, **launch_options())
