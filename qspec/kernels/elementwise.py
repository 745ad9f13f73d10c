"""Norms, activations and rotary embedding, row-invariant and as few torch calls as possible.

torch's own ``silu`` and ``gelu`` treat the last few elements of an array with other instructions than the rest, so an
element's bits depend on where it lies. The forms here are built from operations that were seen not to (exp, tanh) or
that IEEE 754 rounds exactly (+, -, ·, /); ``tests/kernels`` checks both over positions and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from qspec.models.config import Activation, DecoderConfig, RopeScaling

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x²) + eps) · weight`` over the last dimension (Zhang and Sennrich 2019).

    ``weight`` broadcasts against ``x``. A third of the time of ``torch.rms_norm``, which is a dozen operations here.
    """
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale.mul_(scale).mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return x.mul(scale).mul_(weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last dimension."""
    return torch.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def silu(x: Tensor) -> Tensor:
    """``x / (1 + exp(-x))``."""
    return x / torch.exp(-x).add_(1.0)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU (GPT-2)."""
    return (torch.tanh((x * x * x * 0.044715 + x) * _SQRT_2_OVER_PI) + 1.0) * (x * 0.5)


def mlp_middle(activation: Activation, *, gated: bool, row_invariant: bool) -> Callable[[Tensor], Tensor]:
    """The MLP's middle as a function: ``[rows, 2·I]`` (gate, up) to ``[rows, I]`` when gated, else ``[rows, I]``.

    Without ``row_invariant`` it is built from torch's own ``silu`` and ``gelu``.
    """
    if activation is Activation.SILU:
        function = silu if row_invariant else functional.silu
    else:
        function = gelu_tanh if row_invariant else partial(functional.gelu, approximate="tanh")
    if not gated:
        return function

    def gate(x: Tensor) -> Tensor:
        gates, up = x.chunk(2, dim=-1)
        return function(gates).mul_(up)

    return gate


def rotary_frequencies(config: DecoderConfig) -> Tensor:
    """Inverse frequencies ``[head_dim / 2]`` (Su et al. 2021), scaled as Llama 3 does where configured."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    return _scale_llama3(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def _scale_llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies are divided by ``factor``, fast ones kept, those between interpolated (Llama 3.1 model card)."""
    wavelengths = 2.0 * math.pi / frequencies
    slowest = scaling.original_max_position / scaling.low_freq_factor
    fastest = scaling.original_max_position / scaling.high_freq_factor
    smooth = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1.0 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > slowest, frequencies / scaling.factor, frequencies)
    return torch.where((wavelengths <= slowest) & (wavelengths >= fastest), blended, scaled)


def rotary_table(config: DecoderConfig, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin, ``[positions, head_dim]`` each; sin carries the sign of the rotated half."""
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rotary_frequencies(config)[None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in the half-split layout: ``x`` ``[rows, heads, D]``, ``cos``/``sin`` ``[rows, 1, D]``."""
    half = x.shape[-1] // 2
    return x * cos + torch.roll(x, half, -1) * sin
