"""GGUF files, presented as the Hugging Face checkpoint that they were converted from.

llama.cpp's converter renames tensors (``FamilySpec.gguf_names``), interleaves the rows of Llama's query and key
projections for its own rotary layout, and transposes GPT-2's linear weights; all of it is undone here, and the
metadata become the ``config.json`` record that ``qspec.models.hf_config`` reads. Quantised blocks are dequantised by
the ``gguf`` package, or read as they are where a format of ours holds them (``qspec.models.gguf_blocks``). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qspec.errors import ModelError
from qspec.models.families import FamilySpec, family_of_gguf
from qspec.models.gguf_blocks import packing_of, unpack_blocks
from qspec.models.packed_weight import PackedWeight, Packing

_MAGIC = b"GGUF"

_CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
"""Metadata keys below the architecture's prefix, by the configuration keys that they become."""

_CHECKED_KEYS = ("vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.type", "expert_count",
                 "expert_used_count", "rope.scaling.attn_factor")
"""Further keys that are understood; anything else below the prefix is an error."""

_LLAMA3_ORIGINAL_POSITIONS, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0


class _Reader(gguf.GGUFReader):
    """The package's reader over a plain view of its memory map: ``np.memmap`` makes each small look-up costly."""

    @property
    def data(self) -> Any:
        """The file."""
        return self._plain_data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._plain_data = mapped.view(np.ndarray)


class GgufFile:
    """An open GGUF file; a ``TensorSource`` (``qspec.models.checkpoint``) and its configuration."""

    def __init__(self, path: Path) -> None:
        """Map ``path``; ``ModelError`` for a truncated or foreign file or an unknown architecture."""
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{path} is no GGUF file")
        self.path = path
        """Where it is."""
        try:
            self._reader = _Reader(path)
            self._fields = self._reader.fields
            architecture = self.metadata("general.architecture")
            if not isinstance(architecture, str):
                raise ValueError("no general.architecture")
        except ModelError:
            raise
        except (ValueError, IndexError, KeyError, OverflowError, TypeError, UnicodeDecodeError, OSError) as error:
            raise ModelError(f"{path} is truncated or damaged; download it again") from error
        self.spec: FamilySpec = family_of_gguf(architecture)
        self._architecture = architecture
        self._stored = {self._hf_name(tensor.name): tensor for tensor in self._reader.tensors}
        self._rope_factors = self._stored.pop("rope_freqs.weight", None)
        self.config = self._config()

    def metadata(self, key: str) -> Any:
        """A metadata value as plain Python (arrays as lists), or None."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of everything that is stored, as in the Hugging Face checkpoint."""
        found = {}
        for name, tensor in self._stored.items():
            shape = tuple(int(length) for length in reversed(tensor.shape))
            found[name] = shape[::-1] if self.spec.is_conv1d(name) else shape
        return found

    def read(self, name: str) -> torch.Tensor:
        """One tensor, dequantised to fp32, in the layout of the Hugging Face checkpoint."""
        stored = self._stored[name]
        shape = tuple(int(length) for length in reversed(stored.shape))
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type).reshape(shape)
        except (NotImplementedError, ValueError) as error:
            kind = stored.tensor_type.name
            raise ModelError(f"tensor {stored.name} of {self.path} cannot be read as {kind} ({error})") from error
        tensor = torch.from_numpy(np.array(values, dtype=np.float32))
        return tensor.t() if self.spec.is_conv1d(name) else self._unpermuted(name, tensor)

    def packing(self, name: str) -> Packing | None:
        """See ``TensorSource``."""
        return packing_of(self._stored[name].tensor_type)

    def read_packed(self, name: str) -> PackedWeight:
        """See ``TensorSource``."""
        stored = self._stored[name]
        weight = unpack_blocks(stored.data, stored.tensor_type, int(stored.shape[0]))
        codes, scales, offsets = (
            None if rows is None else self._unpermuted(name, rows)
            for rows in (weight.codes, weight.scales, weight.offsets)
        )
        assert codes is not None and scales is not None
        return PackedWeight(codes=codes, scales=scales, offsets=offsets)

    def ignored(self) -> tuple[str, ...]:
        """See ``TensorSource``: everything counts."""
        return ()

    def _unpermuted(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[out, …]`` of a tensor in the order of the Hugging Face checkpoint."""
        if self.spec.gguf_permuted and (part := re.search(r"\.(q|k)_proj\.", name)):
            key = "num_attention_heads" if part.group(1) == "q" else "num_key_value_heads"
            return _undo_permutation(rows, self.config[key])
        return rows

    def close(self) -> None:
        """Let go of the file."""
        self._stored.clear()

    def _hf_name(self, name: str) -> str:
        """The Hugging Face name, or the GGUF name itself where the family knows none."""
        stem, _, suffix = name.rpartition(".")
        layer = re.match(r"blk\.(\d+)\.", stem)
        pattern = stem if layer is None else stem.replace(layer.group(0), "blk.{i}.", 1)
        if (known := self.spec.gguf_names.get(pattern)) is None:
            return name
        return f"{known if layer is None else known.replace('{i}', layer.group(1))}.{suffix}"

    def _config(self) -> dict[str, Any]:
        """The metadata as a ``config.json`` record with Llama's or the family's own key names."""
        record: dict[str, Any] = {"architectures": list(self.spec.architectures), "sliding_window": None}
        prefix = f"{self._architecture}."
        for key in self._fields:
            if not key.startswith(prefix):
                continue
            short = key.removeprefix(prefix)
            if short in _CONFIG_KEYS:
                name = _CONFIG_KEYS[short]
                value = self.metadata(key)
                if isinstance(value, list):
                    if len(set(value)) != 1:
                        raise ModelError(f"GGUF key {key} differs from layer to layer, which is not supported")
                    value = value[0]
                record[self.spec.config_keys.get(name, name)] = value
            elif short not in _CHECKED_KEYS:
                raise ModelError(f"GGUF key {key} is not supported")
        embedding = next(iter(self.spec.rules)).parts[0].name
        if embedding not in self._stored:
            raise ModelError(f"{self.path} has no token embedding; it is no language model or damaged")
        record["vocab_size"] = int(self._stored[embedding].shape[1])
        record["tie_word_embeddings"] = "lm_head.weight" not in self._stored
        record["attention_bias"] = "model.layers.0.self_attn.o_proj.bias" in self._stored
        record["mlp_bias"] = "model.layers.0.mlp.down_proj.bias" in self._stored
        if record.get("sliding_window") is not None:
            record["use_sliding_window"], record["max_window_layers"] = True, 0
        self._refuse_unsupported(record)
        if self._rope_factors is not None:
            record["rope_scaling"] = self._llama3_scaling(record)
        return record

    def _refuse_unsupported(self, record: dict[str, Any]) -> None:
        heads = record.get(self.spec.config_keys.get("num_attention_heads", "num_attention_heads"))
        hidden = record.get(self.spec.config_keys.get("hidden_size", "hidden_size"))
        if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
            raise ModelError(f"{self.path} states no embedding_length or attention.head_count; it is damaged")
        head_dim = record.get("head_dim") or hidden // heads
        supported: dict[str, tuple[Any, ...]] = {
            "rope.dimension_count": (None, head_dim),
            "attention.value_length": (None, head_dim),
            "rope.scaling.type": (None, "none"),
            "expert_count": (None, 0),
            "expert_used_count": (None, 0),
            "rope.scaling.attn_factor": (None, 1.0),
        }
        for key, values in supported.items():
            value = self.metadata(f"{self._architecture}.{key}")
            if value not in values:
                raise ModelError(f"GGUF key {self._architecture}.{key}={value!r} is not supported (only {values[1]!r})")

    def _llama3_scaling(self, record: dict[str, Any]) -> dict[str, Any]:
        """Llama 3's parameters from the per-frequency divisors that the converter stores instead of them.

        The largest divisor is the factor; the other parameters are those of every released Llama 3. The divisors that
        they yield must be the stored ones.
        """
        assert self._rope_factors is not None
        stored = np.asarray(self._rope_factors.data, dtype=np.float64).ravel()
        factor = float(stored.max())
        head_dim = record.get("head_dim") or record["hidden_size"] // record["num_attention_heads"]
        expected = []
        for pair in range(0, head_dim, 2):
            wavelength = 2 * math.pi * record.get("rope_theta", 10000.0) ** (pair / head_dim)
            smooth = (_LLAMA3_ORIGINAL_POSITIONS / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
            smooth = min(1.0, max(0.0, smooth))
            expected.append(1 / ((1 - smooth) / factor + smooth))
        if len(expected) != len(stored) or not np.allclose(stored, expected, rtol=1e-4):
            raise ModelError(f"{self.path} scales its rotary frequencies (rope_freqs) in another way than Llama 3")
        return {"rope_type": "llama3", "factor": factor, "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH, "original_max_position_embeddings": _LLAMA3_ORIGINAL_POSITIONS}


def _undo_permutation(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """From llama.cpp's rotary layout (pairs interleaved in a head) to Hugging Face's (halves): ``[heads·D, …]``."""
    rest = tensor.shape[1:]
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, half, 2, *rest).transpose(1, 2).reshape(tensor.shape)
