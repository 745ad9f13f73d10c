"""Where the contract tests get their workers: each source is a pair of engines, each transport a way to reach them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qspec.config import StackConfig
from qspec.interfaces import Drafter, Verifier
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from tests.fakes import FakeDrafter, FakeVerifier
from tests.served import served_drafter, served_verifier

MAX_SLOTS = 4
NUM_BLOCKS = 16
BLOCK_SIZE = 4
MAX_DRAFT_LENGTH = 4
MAX_BATCH_ROWS = 64
EPOCH = 7


class ArenaOwner(Verifier, Protocol):
    """A verifier engine: owns the arena's file descriptors."""

    @property
    def arena_fds(self) -> tuple[int, ...]:
        """The descriptors."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A pair of engines over one model, with the limits above."""

    load_verifier: Callable[[], ArenaOwner]
    load_drafter: Callable[[], Drafter]


@dataclass(frozen=True, slots=True)
class Workers:
    """An attached pair."""

    verifier: Verifier
    drafter: Drafter


def fake_source() -> Source:
    """The fakes, with a toy model."""
    return Source(
        lambda: FakeVerifier(
            max_slots=MAX_SLOTS, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_draft_length=MAX_DRAFT_LENGTH,
            max_batch_rows=MAX_BATCH_ROWS, epoch=EPOCH, prefix_cache=True, slow_constraints=2,
        ),
        FakeDrafter,
    )


def local_source(model: Path, *, draft_quantization: str, kernels: str) -> Source:
    """The real engines over a model on disk."""
    import torch

    from qspec.engine.drafter import LocalDrafter
    from qspec.engine.verifier import LocalVerifier

    config = StackConfig(
        model=str(model), draft_quantization=draft_quantization, max_slots=MAX_SLOTS,
        kv_tokens=NUM_BLOCKS * BLOCK_SIZE, block_size=BLOCK_SIZE, max_draft_length=MAX_DRAFT_LENGTH,
        max_batch_rows=MAX_BATCH_ROWS, threads=1, kernels=kernels,
    )

    def load_verifier() -> LocalVerifier:
        torch.set_num_threads(1)  # counts for the thread that calls it: the engine's
        return LocalVerifier.load(config, progress=_no_progress, epoch=EPOCH)

    def load_drafter() -> LocalDrafter:
        torch.set_num_threads(1)
        return LocalDrafter.load(config, progress=_no_progress)

    return Source(load_verifier, load_drafter)


def _no_progress(text: str, fraction: float | None) -> None:
    """Nobody watches."""


@contextlib.contextmanager
def in_process(source: Source, directory: Path) -> Iterator[Workers]:
    """Both engines in this process, called directly."""
    del directory
    verifier, drafter = source.load_verifier(), source.load_drafter()
    drafter.attach(verifier.describe())
    try:
        yield Workers(verifier, drafter)
    finally:
        drafter.close()
        verifier.close()


@contextlib.contextmanager
def over_grpc(source: Source, directory: Path) -> Iterator[Workers]:
    """Both engines behind the real servicers, on Unix sockets."""
    owners: list[ArenaOwner] = []

    def load() -> Verifier:
        owners.append(source.load_verifier())
        return owners[0]

    with (
        served_verifier(load, directory, lambda: owners[0].arena_fds) as verifier_address,
        served_drafter(source.load_drafter, directory) as drafter_address,
        contextlib.closing(RemoteVerifier(verifier_address, load_timeout_s=20.0)) as verifier,
        contextlib.closing(RemoteDrafter(drafter_address, load_timeout_s=20.0)) as drafter,
    ):
        drafter.attach(verifier.describe())
        yield Workers(verifier, drafter)
