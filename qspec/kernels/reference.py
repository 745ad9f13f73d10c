"""The definition of every operation, in plain torch: what the fast kernels beside this file are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight + bias`` in float64: ``[rows, in] · [in, out]``."""
    y = x.double() @ weight.double()
    return y if bias is None else y + bias.double()


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: codes in -127..127, rounded to nearest even, and scales ``absmax / 127``.

    ``x``: ``[rows, K]``; codes ``[rows, K]`` int8, scales ``[rows, 1]`` float32. A row of zeros has scale 0.
    """
    absmax = x.abs().amax(-1, keepdim=True)
    divisor = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    codes = torch.round(x / divisor * 127.0).to(torch.int8)
    return codes, absmax / 127.0


def linear_w8a8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """int8 weights per output channel times int8 activations per token; the integer sum is exact.

    ``x``: ``[rows, in]``, ``codes``: ``[out, in]`` int8, ``scales``: ``[out]``; returns ``[rows, out]`` float64.
    """
    x_codes, x_scales = quantize_rows_int8(x.float())
    total = x_codes.long() @ codes.long().t()
    y = total.double() * x_scales.double() * scales.double()
    return y if bias is None else y + bias.double()


def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Causal attention with grouped queries in float64.

    ``q``: ``[rows, heads, D]`` at ``positions`` ``[rows]``; ``k``, ``v``: ``[context, kv_heads, D]`` at 0, 1, …;
    a row sees the keys up to its own position. Returns ``[rows, heads·D]``.
    """
    rows, heads, head_dim = q.shape
    group = heads // k.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("rhd,chd->hrc", q.double(), k) / head_dim**0.5
    hidden = torch.arange(k.shape[0])[None, :] > positions[:, None]
    probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hrc,chd->rhd", probs, v).reshape(rows, heads * head_dim)
