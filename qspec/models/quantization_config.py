"""What ``quantization_config`` of a Hugging Face ``config.json`` says of a quantised checkpoint.

Keys as transformers documents them for ``GPTQConfig`` and ``AwqConfig``
(https://huggingface.co/docs/transformers/main_classes/quantization).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qspec.errors import ModelError

_SUPPORTED = "supported are gptq with 4 or 8 bits and awq (gemm, with zero points) with 4 bits"
WHOLE_ROW = -1
"""The group size of a weight with one group per output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """One kind of packed checkpoint."""

    method: str
    """``gptq`` or ``awq``."""
    bits: int
    group_size: int
    """Inputs that share a scale, or ``WHOLE_ROW``."""
    zeros_less_one: bool = False
    """Whether zero points are stored less one (the first version of the GPTQ packing)."""


def quantization_config(record: Mapping[str, Any]) -> QuantizationConfig | None:
    """The packing that ``record`` (a parsed ``config.json``) states; None for none, ``ModelError`` for another one."""
    stated = record.get("quantization_config")
    if not stated:
        return None
    if not isinstance(stated, Mapping):
        raise ModelError(f"config.json: quantization_config must be an object, got {stated!r}")
    method = stated.get("quant_method", "unnamed")
    bits, group_size = stated.get("bits"), stated.get("group_size", 128)
    if method not in ("gptq", "awq"):
        raise ModelError(f"config.json: a checkpoint quantised by {method!r} cannot be read; {_SUPPORTED}")
    if not isinstance(bits, int) or bits not in ((4, 8) if method == "gptq" else (4,)):
        raise ModelError(f"config.json: {method} with bits={bits!r} cannot be read; {_SUPPORTED}")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or (group_size < 1 and group_size != WHOLE_ROW):
        raise ModelError(f"config.json: quantization_config.group_size must be positive or -1, got {group_size!r}")
    if method == "gptq":
        layout = stated.get("checkpoint_format") or "gptq"
        if layout not in ("gptq", "gptq_v2"):
            raise ModelError(f"config.json: checkpoint_format {layout!r} cannot be read (only 'gptq' and 'gptq_v2')")
        return QuantizationConfig(method=method, bits=bits, group_size=group_size, zeros_less_one=layout == "gptq")
    version = str(stated.get("version", stated.get("format", "gemm"))).lower()
    if version != "gemm" or stated.get("zero_point", True) is not True:
        raise ModelError(
            f"config.json: awq with version={version!r} and zero_point={stated.get('zero_point')!r} cannot be read; "
            f"{_SUPPORTED}"
        )
    return QuantizationConfig(method=method, bits=bits, group_size=group_size)
