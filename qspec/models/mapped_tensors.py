"""Tensors of a safetensors file by name, mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors
import torch

from qspec.errors import ModelError


class MappedTensors(Mapping[str, torch.Tensor]):
    """A mapping and a context manager; tensors taken out keep their mapping and stay valid. Treat them as read-only."""

    def __init__(self, path: Path) -> None:
        try:
            opened: Any = safetensors.safe_open(path, framework="pt")
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged ({error}); delete its directory to convert the model again") from error
        self.path = path
        self._handle = opened
        self._offsets: dict[str, int] = {}
        self._names: frozenset[str] = frozenset(opened.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor; ``KeyError`` when there is none of that name."""
        if name not in self._names:
            raise KeyError(name)
        tensor: torch.Tensor = self._handle.get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._handle.get_slice(name).get_shape())

    def offset(self, name: str) -> int:
        """First byte of a tensor in the file (https://github.com/huggingface/safetensors#format)."""
        if not self._offsets:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            self._offsets = {name: 8 + length + header[name]["data_offsets"][0] for name in self._names}
        return self._offsets[name]

    def __enter__(self) -> MappedTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.__exit__(kind, error, trace)
