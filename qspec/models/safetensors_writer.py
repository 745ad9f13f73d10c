"""Writing a safetensors file tensor by tensor.

``safetensors.save_file`` wants all tensors in memory at once; a conversion has one at a time. The format is an 8-byte
little-endian header length, a JSON header and the tensors without gaps
(https://github.com/huggingface/safetensors#format). The shapes are known beforehand, so each tensor goes to its place.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

_DTYPES = {torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3"}
_ALIGNMENT = 64


class SafetensorsWriter:
    """A context manager; leaving it without an exception checks that every tensor was written."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """``tensors``: name to (dtype, shape). Wider dtypes are placed first, so that all are aligned."""
        self._tensors = dict(tensors)
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {}
        position = 0
        for name in sorted(tensors, key=lambda key: -tensors[key][0].itemsize):
            dtype, shape = tensors[name]
            size = dtype.itemsize * torch.Size(shape).numel()
            self._offsets[name] = position
            offsets = [position, position + size]
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": offsets}
            position += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-(len(encoded) + 8) % _ALIGNMENT)
        self._start = 8 + len(encoded)
        self._missing = set(tensors)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(encoded)) + encoded)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor of the dtype and shape that were announced."""
        if (tensor.dtype, tuple(tensor.shape)) != self._tensors[name]:
            raise ValueError(f"{name} was announced as {self._tensors[name]}, got {tensor.dtype} {tuple(tensor.shape)}")
        self._file.seek(self._start + self._offsets[name])
        self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        self._missing.discard(name)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"tensors announced but not written: {sorted(self._missing)}")
