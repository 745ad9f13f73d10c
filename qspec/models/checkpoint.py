"""Tensors of a saved Hugging Face model, one at a time.

``model.safetensors`` is preferred and read through a memory map; ``pytorch_model.bin`` is unpickled with
``weights_only`` by ``accelerate``, one shard in memory at a time. Both may be sharded by an ``.index.json``.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch

from qspec.errors import ModelError
from qspec.models.packed_weight import PackedWeight, Packing


class TensorSource(Protocol):
    """Tensors of a model by Hugging Face name, in the layout of a Hugging Face checkpoint."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of everything that is stored."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """One tensor in fp32; may be a view of the file."""
        ...

    def packing(self, name: str) -> Packing | None:
        """How the file quantises this weight; None for floating point."""
        ...

    def read_packed(self, name: str) -> PackedWeight:
        """The codes of a weight whose packing has groups, ``[out, in]`` whatever the checkpoint's layout."""
        ...

    def ignored(self) -> tuple[str, ...]:
        """Patterns of tensors in the file that change nothing."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class StoredTensors(Protocol):
    """Tensors of a model's files by name, in the types that they have there."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of everything that is stored."""
        ...

    def read_stored(self, name: str) -> torch.Tensor:
        """One tensor as it is; may be a view of the file."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


def open_checkpoint(directory: Path) -> FloatCheckpoint:
    """The weights in ``directory``: safetensors if there are any, else ``.bin``."""
    for stem, reader in (("model.safetensors", SafetensorsCheckpoint), ("pytorch_model.bin", PickledCheckpoint)):
        if (directory / stem).is_file():
            return reader([directory / stem])
        index = directory / f"{stem}.index.json"
        if index.is_file():
            return reader(_shards(index))
    raise ModelError(f"{directory} has neither model.safetensors nor pytorch_model.bin (nor an index of their shards)")


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of shards; download the model again") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ModelError(f"{index} names a shard outside its directory: {shard!r}")
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index.parent / shard} is missing, though the index names it; download the model again")
    return [index.parent / shard for shard in shards]


def to_fp32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in fp32; ``ModelError`` naming it when it holds integers."""
    if not tensor.is_floating_point():
        raise ModelError(f"tensor {name} is {tensor.dtype}, not floating point; use an unquantised checkpoint")
    return tensor.to(torch.float32)


class FloatCheckpoint(ABC):
    """What both kinds of files have in common: a ``TensorSource`` over floating-point tensors."""

    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def read_stored(self, name: str) -> torch.Tensor:
        """See ``StoredTensors``."""

    @abstractmethod
    def close(self) -> None:
        """See ``TensorSource``."""

    def read(self, name: str) -> torch.Tensor:
        """See ``TensorSource``."""
        return to_fp32(name, self.read_stored(name))

    def packing(self, name: str) -> Packing | None:
        """See ``TensorSource``: nothing is packed."""
        return None

    def read_packed(self, name: str) -> PackedWeight:
        """See ``TensorSource``: nothing is packed."""
        raise KeyError(name)

    def ignored(self) -> tuple[str, ...]:
        """See ``TensorSource``: everything counts."""
        return ()


class SafetensorsCheckpoint(FloatCheckpoint):
    """One or more ``.safetensors`` files."""

    def __init__(self, files: list[Path]) -> None:
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                handle = self._stack.enter_context(safetensors.safe_open(file, framework="pt"))
                for name in handle.keys():  # noqa: SIM118  (a handle is no mapping)
                    self._handles[name] = handle
                    self.shapes[name] = tuple(handle.get_slice(name).get_shape())
            except (safetensors.SafetensorError, OSError) as error:
                self._stack.close()
                raise ModelError(f"{file} is truncated or no safetensors file ({error}); download it again") from error

    def read_stored(self, name: str) -> torch.Tensor:
        """See ``StoredTensors``."""
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor

    def close(self) -> None:
        """See ``TensorSource``."""
        self._handles.clear()
        self._stack.close()


class PickledCheckpoint(FloatCheckpoint):
    """One or more ``pytorch_model*.bin`` files; holds one of them at a time."""

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._loaded_file: Path | None = None
        self._loaded: dict[str, torch.Tensor] = {}
        for file in files:
            for name, tensor in self._load(file).items():
                self._files[name] = file
                self.shapes[name] = tuple(tensor.shape)

    def _load(self, file: Path) -> dict[str, torch.Tensor]:
        if self._loaded_file != file:
            from accelerate.utils import load_state_dict

            self._loaded, self._loaded_file = {}, None
            try:
                loaded = load_state_dict(str(file), device_map={"": "cpu"})
            except Exception as error:  # what a foreign file does to an unpickler has no class in common
                raise ModelError(f"{file} is truncated or no plain PyTorch state dict; download it again") from error
            if not isinstance(loaded, dict) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
                raise ModelError(f"{file} holds something else than a state dict of tensors; use the model's own file")
            self._loaded, self._loaded_file = loaded, file
        return self._loaded

    def read_stored(self, name: str) -> torch.Tensor:
        """See ``StoredTensors``."""
        return self._load(self._files[name])[name]

    def close(self) -> None:
        """See ``TensorSource``."""
        self._loaded, self._loaded_file = {}, None
