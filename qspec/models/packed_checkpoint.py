"""GPTQ and AWQ checkpoints, presented as the Hugging Face checkpoint that they were made from.

Instead of ``x.weight`` a quantised layer has ``x.qweight`` and ``x.qzeros`` (int32, several codes in each) and
``x.scales`` (fp16, ``[groups, out]``); a weight is ``(code - zero point) · scale``.

**GPTQ** (AutoGPTQ, ``QuantLinear.pack``; GPTQModel keeps it). ``qweight`` ``[in·bits/32, out]``: in row r, input
``32/bits·r + i`` lies in bits ``i·bits`` and up. ``qzeros`` ``[groups, out·bits/32]``: the same along the outputs. The
first version of the format stores zero points less one, so that 0 cannot be stored: it becomes -1 and spoils the codes
above it in its word. ``x.g_idx`` ``[in]`` is the group of each input; where inputs were quantised in the order of their
activations (``desc_act``), a group is no run of adjacent inputs, no format of ours holds the layer, and it is
dequantised.

**AWQ** (AutoAWQ, ``WQLinear_GEMM.from_linear``). ``qweight`` ``[in, out/8]``, ``qzeros`` ``[groups, out/8]``: of eight
adjacent outputs the numbers 0, 2, 4, 6, 1, 3, 5, 7 lie in bits 0, 4, … and up.

Symmetric weights are those whose zero points are all half the range.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from qspec.errors import ModelError
from qspec.models.checkpoint import StoredTensors, to_fp32
from qspec.models.families import FamilySpec
from qspec.models.packed_weight import Offset, PackedWeight, Packing
from qspec.models.quantization_config import WHOLE_ROW, QuantizationConfig

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight adjacent outputs lies in each nibble of a word, lowest first."""
_WORD_BITS = 32


class PackedCheckpoint:
    """A ``TensorSource`` (``qspec.models.checkpoint``) over the tensors of a packed checkpoint."""

    def __init__(self, tensors: StoredTensors, config: QuantizationConfig, spec: FamilySpec) -> None:
        """``ModelError`` when a layer's tensors do not fit each other."""
        self._tensors, self._config, self._spec = tensors, config, spec
        stored = tensors.shapes
        self._layers = frozenset(name.removesuffix(".qweight") for name in stored if name.endswith(".qweight"))
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in stored.items():
            layer, _, part = name.rpartition(".")
            if layer not in self._layers or part not in ("qweight", "qzeros", "scales", "g_idx"):
                self.shapes[name] = shape
        for layer in sorted(self._layers):
            outputs, inputs = self._sizes(layer)
            weight = f"{layer}.weight"
            self.shapes[weight] = (inputs, outputs) if spec.is_conv1d(weight) else (outputs, inputs)

    def packing(self, name: str) -> Packing | None:
        """See ``TensorSource``."""
        if (layer := self._layer(name)) is None:
            return None
        method, bits = self._config.method.upper(), self._config.bits
        size = self._group_size(layer)
        if not self._in_order(layer):
            return Packing(description=f"{method} with groups that are no runs of adjacent inputs (desc_act)")
        symmetric = bool((self._zeros(layer) == self._middle).all())
        kind = "" if symmetric else ", asymmetric"
        return Packing(
            description=f"{method} {bits} bits in groups of {size}{kind}", bits=bits, group_size=size,
            offset=Offset.NONE if symmetric else Offset.ZERO_POINT,
        )

    def read_packed(self, name: str) -> PackedWeight:
        """See ``TensorSource``."""
        layer = self._layer(name)
        if layer is None or not self._in_order(layer):
            raise KeyError(name)
        codes, scales, zeros = self._codes(layer), self._scales(layer), self._zeros(layer).t().contiguous()
        if bool((zeros == self._middle).all()):
            signed = (codes.to(torch.int16) - self._middle).to(torch.int8)
            return PackedWeight(codes=signed, scales=scales.t().contiguous())
        return PackedWeight(codes=codes, scales=scales.t().contiguous(), offsets=zeros)

    def read(self, name: str) -> Tensor:
        """See ``TensorSource``."""
        if (layer := self._layer(name)) is None:
            return to_fp32(name, self._tensors.read_stored(name))
        if self._in_order(layer):
            weight = self.read_packed(name).decode()
        else:
            groups = self._groups(layer)  # [in]
            scales, zeros = self._scales(layer).t()[:, groups], self._zeros(layer).t()[:, groups]
            weight = (self._codes(layer).float() - zeros.float()) * scales
        return weight.t() if self._spec.is_conv1d(name) else weight

    def ignored(self) -> tuple[str, ...]:
        """Biases of zeros, which the GPTQ packer adds to layers that have none."""
        biases = [f"{layer}.bias" for layer in self._layers if f"{layer}.bias" in self.shapes]
        return tuple(re.escape(name) for name in biases if not bool(self._tensors.read_stored(name).any()))

    def close(self) -> None:
        """See ``TensorSource``."""
        self._tensors.close()

    @property
    def _middle(self) -> int:
        return 1 << (self._config.bits - 1)

    def _layer(self, name: str) -> str | None:
        layer = name.removesuffix(".weight")
        return layer if layer != name and layer in self._layers else None

    def _sizes(self, layer: str) -> tuple[int, int]:
        """Outputs and inputs, after checking that all tensors of the layer have them."""
        stored, per_word = self._tensors.shapes, _WORD_BITS // self._config.bits
        found = {part: stored.get(f"{layer}.{part}", ()) for part in ("qweight", "qzeros", "scales")}
        if all(len(shape) == 2 for shape in found.values()):
            rows, columns = found["qweight"]
            gptq = self._config.method == "gptq"
            inputs, outputs = (rows * per_word, columns) if gptq else (rows, columns * per_word)
            size = inputs if self._config.group_size == WHOLE_ROW else self._config.group_size
            groups = -(-inputs // size)
            expected = {"qzeros": (groups, outputs // per_word), "scales": (groups, outputs)}
            order = stored.get(f"{layer}.g_idx", (inputs,))
            if outputs % per_word == 0 and order == (inputs,) and all(found[p] == s for p, s in expected.items()):
                return outputs, inputs
        shapes = ", ".join(f"{part} {list(shape)}" for part, shape in found.items())
        raise ModelError(
            f"{layer}: {shapes} do not fit {self._config.method} with {self._config.bits} bits in groups of "
            f"{self._config.group_size}; download the model again"
        )

    def _group_size(self, layer: str) -> int:
        return self._sizes(layer)[1] if self._config.group_size == WHOLE_ROW else self._config.group_size

    def _groups(self, layer: str) -> Tensor:
        """The group of each input, ``[in]`` int64."""
        _, inputs = self._sizes(layer)
        plain = torch.arange(inputs) // self._group_size(layer)
        if f"{layer}.g_idx" not in self._tensors.shapes:
            return plain
        groups = self._tensors.read_stored(f"{layer}.g_idx").long()
        count = self._tensors.shapes[f"{layer}.scales"][0]
        if not bool(((groups >= 0) & (groups < count)).all()):
            raise ModelError(f"{layer}.g_idx names groups beyond the {count} of its scales; download the model again")
        return groups

    def _in_order(self, layer: str) -> bool:
        groups, size = self._groups(layer), self._group_size(layer)
        return len(groups) % size == 0 and torch.equal(groups, torch.arange(len(groups)) // size)

    def _codes(self, layer: str) -> Tensor:
        """``[out, in]`` uint8."""
        words = self._words(f"{layer}.qweight")
        if self._config.method == "gptq":
            return unpack_words(words.t(), self._config.bits)
        return _in_awq_order(unpack_words(words, self._config.bits)).t().contiguous()

    def _zeros(self, layer: str) -> Tensor:
        """Zero points ``[groups, out]`` uint8."""
        zeros = unpack_words(self._words(f"{layer}.qzeros"), self._config.bits)
        if self._config.method == "awq":
            return _in_awq_order(zeros)
        if not self._config.zeros_less_one:
            return zeros
        if bool((zeros == (1 << self._config.bits) - 1).any()):
            raise ModelError(
                f"{layer}.qzeros: a zero point of 0 does not survive in the packing 'gptq', which stores it less one; "
                "quantise the model again with checkpoint_format gptq_v2 or sym=true"
            )
        return zeros + 1

    def _scales(self, layer: str) -> Tensor:
        """``[groups, out]`` fp32."""
        return to_fp32(f"{layer}.scales", self._tensors.read_stored(f"{layer}.scales"))

    def _words(self, name: str) -> Tensor:
        words = self._tensors.read_stored(name)
        if words.dtype is not torch.int32:
            raise ModelError(f"tensor {name} is {words.dtype}, not int32; download the model again")
        return words


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 ``[..., n]`` as its codes ``[..., n · 32 / bits]`` uint8, those in the lowest bits first."""
    mask = (1 << bits) - 1
    codes = [((words >> shift) & mask).to(torch.uint8) for shift in range(0, _WORD_BITS, bits)]
    return torch.stack(codes, dim=-1).flatten(-2)


def _in_awq_order(codes: Tensor) -> Tensor:
    """Codes ``[rows, out]`` as they lie in AWQ's words, by output."""
    place = [AWQ_ORDER.index(output) for output in range(len(AWQ_ORDER))]
    words = codes.view(codes.shape[0], -1, len(AWQ_ORDER))
    return words[..., place].flatten(-2)
