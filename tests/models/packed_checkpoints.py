"""Tiny GPTQ and AWQ checkpoints, packed code by code as the formats' definitions say."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny_models import build_tiny_model, build_tiny_tokenizer

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: for each quantised layer, by Hugging Face name without ``.weight``."""

    codes: dict[str, Tensor] = field(default_factory=dict)
    """``[out, in]`` int64, with their zero points still in them."""
    zeros: dict[str, Tensor] = field(default_factory=dict)
    """``[out, groups]`` int64."""
    scales: dict[str, Tensor] = field(default_factory=dict)
    """``[out, groups]`` fp16."""
    model: Any = None
    """The transformers model with the dequantised weights, fp32."""


def pack_word(codes: list[int], bits: int) -> int:
    """int32 with the first code in the lowest bits."""
    word = sum(code << (bits * place) for place, code in enumerate(codes)) & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def pack_columns(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """``[rows, n]`` as ``[rows, n·bits/32]`` int32; ``order``: which code of a word lies in each place."""
    per_word = 32 // bits
    order = order or tuple(range(per_word))
    rows = [
        [pack_word([row[start + place] for place in order], bits) for start in range(0, len(row), per_word)]
        for row in codes.tolist()
    ]
    return torch.tensor(rows, dtype=torch.int32)


def write_packed(
    directory: Path,
    family: str = "llama_wide",
    *,
    method: str = "gptq",
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = True,
    version: int = 1,
    shuffled: bool = False,
    least_zero: int = 1,
    zero_biases: bool = False,
    changes: dict[str, Any] | None = None,
) -> Packed:
    """Save ``family`` of ``tests.tiny_models`` with random codes in all linear layers but ``lm_head``."""
    generator = torch.Generator().manual_seed(3)
    packed = Packed(model=build_tiny_model(family))
    conv1d = family.startswith("gpt2")
    state = {name: tensor.clone() for name, tensor in packed.model.state_dict().items()}
    if packed.model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    per_range = 1 << bits
    for name in [name for name in state if "_proj.weight" in name or (".c_" in name and name.endswith(".weight"))]:
        layer = name.removesuffix(".weight")
        shape = state.pop(name).shape
        outputs, inputs = shape[::-1] if conv1d else shape
        size = inputs if group_size == -1 else group_size
        codes = torch.randint(0, per_range, (outputs, inputs), generator=generator)
        zeros = torch.randint(least_zero, per_range, (outputs, inputs // size), generator=generator)
        zeros = torch.full_like(zeros, per_range // 2) if symmetric else zeros
        scales = (torch.rand(zeros.shape, generator=generator) * 0.4 / per_range + 0.01 / per_range).half()
        group = torch.arange(inputs) // size
        if shuffled:
            group = group[torch.randperm(inputs, generator=generator)]
        weight = (codes - zeros[:, group]).float() * scales[:, group].float()
        packed.codes[layer], packed.zeros[layer], packed.scales[layer] = codes, zeros, scales
        packed.model.get_parameter(name).data.copy_(weight.t() if conv1d else weight)
        if method == "gptq":
            state[f"{layer}.qweight"] = pack_columns(codes, bits).t().contiguous()
            state[f"{layer}.qzeros"] = pack_columns(zeros.t() - (1 if version == 1 else 0), bits)
            state[f"{layer}.g_idx"] = group.int()
        else:
            state[f"{layer}.qweight"] = pack_columns(codes.t(), bits, AWQ_ORDER)
            state[f"{layer}.qzeros"] = pack_columns(zeros.t(), bits, AWQ_ORDER)
        state[f"{layer}.scales"] = scales.t().contiguous()
        if zero_biases:
            state[f"{layer}.bias"] = torch.zeros(outputs).half()
    stated: dict[str, Any] = {"quant_method": method, "bits": bits, "group_size": group_size}
    if method == "gptq":
        stated |= {"sym": symmetric, "desc_act": shuffled, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    else:
        stated |= {"version": "gemm", "zero_point": True}
    build_tiny_tokenizer().save_pretrained(directory)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    record = packed.model.config.to_dict()
    record |= {"architectures": [type(packed.model).__name__], "quantization_config": stated | (changes or {})}
    (directory / "config.json").write_text(json.dumps(record, default=str), "utf-8")
    return packed
