"""Mapping an arena, whatever memory it lies in."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from qspec.interfaces import ArenaBackend, ArenaDescriptor
from qspec.memory.arena import HostArena


class Arena(Protocol):
    """What the workers' insides know of an arena (``HostArena``, ``qspec.memory.device_arena.DeviceArena``)."""

    @property
    def descriptor(self) -> ArenaDescriptor:
        """What another process needs to map it."""
        ...

    @property
    def fds(self) -> tuple[int, ...]:
        """File descriptors that have to be handed over beside the descriptor."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The region ``name`` as a tensor over the shared memory; no copy. ``KeyError`` if there is none."""
        ...

    def names(self) -> list[str]:
        """Names of all regions."""
        ...

    def close(self) -> None:
        """Let go of it. Harmless when repeated."""
        ...


def open_arena(descriptor: ArenaDescriptor) -> Arena:
    """Map an arena as the drafter. Raises as ``HostArena.open`` and ``DeviceArena.open``."""
    if descriptor.backend is ArenaBackend.CUDA_IPC:
        from qspec.memory.cuda_arena import CudaArena
        from qspec.memory.device_arena import DeviceArena

        return DeviceArena.open(descriptor) if descriptor.file_sizes else CudaArena.open(descriptor)
    return HostArena.open(descriptor)
