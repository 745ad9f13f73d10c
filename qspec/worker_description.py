"""What workers say of themselves: models, formats, limits, memory, and the arena that both of them map.

Plain data, as the rest of what crosses the seam (``qspec.interfaces``, from where it is imported).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One line of a memory budget."""

    name: str
    bytes: int
    shared: bool
    mapped_file: bool = False
    """Whether it is a file, mapped read-only, whose pages all stacks on a host share."""


class ArenaBackend(Enum):
    """Where an arena's memory lives."""

    HOST_SHM = "host_shm"
    CUDA_IPC = "cuda_ipc"


class RegionWriter(Enum):
    """The only process that writes a region."""

    VERIFIER = "verifier"
    DRAFTER = "drafter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One tensor in the arena: ``dtype`` as torch names it, ``offset`` in bytes from the start of what it lies in.

    That is the arena's own memory (``file`` 0), or the n-th of its read-only files (``file`` n).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    writer: RegionWriter
    file: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ArenaDescriptor:
    """Everything needed to map an arena. A key to the memory: local sockets only, never pickled, never logged."""

    backend: ArenaBackend
    device_uuid: str
    handle: bytes
    reference: str
    size: int
    epoch: int
    fingerprint: str
    regions: tuple[Region, ...]
    file_sizes: tuple[int, ...] = ()
    """Of the files with weights that belong to it."""

    def __repr__(self) -> str:
        return f"ArenaDescriptor({self.backend.value}, {self.size} bytes, epoch {self.epoch})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierDescription:
    """What a verifier is: model, formats, limits, arena."""

    model: str
    method: str
    row_invariant: bool
    vocab_size: int
    vocab_fingerprint: str
    max_model_len: int
    max_slots: int
    max_draft_length: int
    max_batch_rows: int
    block_size: int
    num_blocks: int
    arena: ArenaDescriptor
    memory: tuple[MemoryItem, ...]
    kernel: str
    draft_quantization: str
    """The drafter's method as the configuration names it, or what ``auto`` stands for there."""
    verify_quantization: str
    """The same of its own."""
    auto_reason: str = ""
    """Why ``auto`` stands for what it does, for people; empty where both methods were named."""
    prefix_cache: bool = False
    """Whether it looks for the entries of an admission's ``token_ids``."""
    awaits_drafts: bool = False
    """Whether it can take drafts from the arena (``qspec.interfaces.Verification.awaited_drafts``)."""
    asked_ahead: bool = False
    """Whether it, and drafters over its arena, can be asked for a round before the one before has been answered
    (``after_round``)."""

    @property
    def epoch(self) -> int:
        """Changes whenever the verifier's arena is created anew."""
        return self.arena.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterDescription:
    """What an attached drafter is."""

    epoch: int
    method: str
    kernel: str
    memory: tuple[MemoryItem, ...]
