"""Whether a GPU can run a model here, and if not, why."""

from __future__ import annotations

import torch

from qspec.device import missing_packages
from qspec.models.config import Activation, DecoderConfig, Norm, Positions

_LEAST_CAPABILITY = (8, 0)
_MOST_WIDTH = 1 << 15
_MOST_QUERIES = 64


def gpu_absence(model: DecoderConfig) -> str | None:
    """Why ``model`` cannot run on a GPU here; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if missing := missing_packages():
        return f"{' and '.join(missing)} cannot be imported (pip install 'qspec-serve[gpu]')"
    if (capability := torch.cuda.get_device_capability(0)) < _LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and the kernels need 8.0"
    return model_absence(model)


def model_absence(model: DecoderConfig) -> str | None:
    """What of a model's architecture the kernels do not know; None where they know all."""
    known = (Norm.RMS, Activation.SILU, True, Positions.ROTARY)
    if (model.norm, model.activation, model.gated_mlp, model.positions) != known:
        return f"no GPU kernels for {model.family}: they know RMS norms, gated SiLU and rotary positions"
    if model.head_dim < 16 or model.head_dim & (model.head_dim - 1):
        return f"no GPU kernels for a head dimension of {model.head_dim}: it must be a power of two from 16 on"
    if model.num_heads // model.num_kv_heads > _MOST_QUERIES:
        return f"no GPU kernels for more than {_MOST_QUERIES} query heads on a key head"
    widths = {"hidden size": model.hidden_size, "intermediate size": model.intermediate_size,
              "width of attention": model.num_heads * model.head_dim}
    for name, width in widths.items():
        if width % 64 or width > _MOST_WIDTH:
            return f"no GPU kernels for a {name} of {width}: it must be a multiple of 64 up to {_MOST_WIDTH}"
    if model.vocab_size % 16:
        return f"no GPU kernels for a vocabulary of {model.vocab_size}: it must be a multiple of 16"
    return None
