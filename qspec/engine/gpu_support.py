"""Whether a GPU can run a model here, and if not, why."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from qspec.device import missing_packages
from qspec.errors import InvalidInput
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Role, Variant

_LEAST_CAPABILITY = (8, 0)
_FP8_CAPABILITY = (8, 9)
"""From Ada on GPUs convert and multiply e4m3."""
_FP8_FORMATS = ("e4m3-plane", "e4m3-row")
_MOST_WIDTH = 1 << 15
_MOST_QUERIES = 64
_MOST_HEAD_DIM = 256
_USUAL_HEAD_DIM = 128
_WIDE_HEADS_BYTES = 128 << 10
"""Shared memory that attention over heads of more than 128 takes (107 KB where reads are fewest)."""


def gpu_absence(model: DecoderConfig) -> str | None:
    """Why ``model`` cannot run on a GPU here; None where it can."""
    return machine_absence() or _heads_absence(model) or model_absence(model)


def machine_absence() -> str | None:
    """Why no model can run on a GPU here; None where some can."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if missing := missing_packages():
        return f"{' and '.join(missing)} cannot be imported (pip install 'qspec-serve[gpu]')"
    if (capability := torch.cuda.get_device_capability(0)) < _LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and the kernels need 8.0"
    return None


def _heads_absence(model: DecoderConfig) -> str | None:
    """Why attention over a model's heads cannot run on this GPU."""
    from qspec.kernels.triton.device_limits import device_limits

    room = device_limits().shared_bytes
    if model.head_dim > _USUAL_HEAD_DIM and room < _WIDE_HEADS_BYTES:
        return f"the GPU's programs have {room >> 10} KB of shared memory, too little for heads of {model.head_dim}"
    return None


def fp8_absence() -> str | None:
    """Why this GPU cannot read e4m3; None where it can, and where kernels are interpreted."""
    if not torch.cuda.is_available() or (capability := torch.cuda.get_device_capability(0)) >= _FP8_CAPABILITY:
        return None
    return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and e4m3 needs 8.9 (Ada, Hopper or newer)"


def needs_fp8(variant: Variant) -> bool:
    """Whether a variant's kernels convert or multiply e4m3; merging both planes of an fp16 weight does not."""
    return variant.weights in _FP8_FORMATS or variant.activations == "e4m3 per token"


def check_formats(plan: MethodPlan, role: Role) -> None:
    """``InvalidInput`` where a worker's plan for a GPU has formats that this one has no instructions for."""
    absence = fp8_absence()
    lacking = [layer for layer, choice in plan.layers.items() if needs_fp8(choice.variant)]
    if absence is not None and lacking:
        raise InvalidInput.field(
            role.value, f"{absence} ({plan.layers[lacking[0]].label} for {lacking[0]}); draft with w8a8, w4a8, int8 "
                        "or int4, or not at all ('off')")


def check_biases(tensors: Iterable[str]) -> None:
    """``InvalidInput`` where a model has biases that no kernel adds: all but those of queries, keys and values.

    ``tensors``: the canonical names of all.
    """
    biases = sorted(name for name in tensors if name.endswith(".bias") and not name.endswith("qkv.bias"))
    if biases:
        raise InvalidInput.field(
            "device", f"the model has biases that the kernels for GPUs do not add ({biases[0]}); use --device cpu")


def model_absence(model: DecoderConfig) -> str | None:
    """What of a model's architecture the kernels do not know; None where they know all."""
    unknown = [
        name for name, is_known in (
            (f"norm ({model.norm.value})", model.norm is Norm.RMS),
            (f"activation ({model.activation.value})", model.activation is Activation.SILU),
            ("MLP without a gate", model.gated_mlp),
            (f"positions ({model.positions.value})", model.positions is Positions.ROTARY),
        ) if not is_known
    ]
    if unknown:
        return (f"no GPU kernels for {model.family}'s {', '.join(unknown)}: they know RMS norms, gated SiLU and rotary "
                "positions")
    if not 16 <= model.head_dim <= _MOST_HEAD_DIM or model.head_dim & (model.head_dim - 1):
        return f"no GPU kernels for a head dimension of {model.head_dim}: it must be a power of two from 16 to 256"
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
