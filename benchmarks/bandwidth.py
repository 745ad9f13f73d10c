"""What memory allows: the rate at which all threads together read, and the plain decoding that it would permit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.kernels import fastest_ms
from qspec.kernels.native import NativeUnavailable
from qspec.kernels.native.threads import Threads
from qspec.v1 import generation_pb2 as pb

_BYTES = 512 << 20
"""More than any processor's cache."""
_REPEATS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Plain decoding that would only read the verifier's weights."""

    bytes_per_s: float
    weight_bytes: int
    """Read for each token."""

    @property
    def tokens_per_s(self) -> float:
        """The most that one stream could make."""
        return self.bytes_per_s / self.weight_bytes


def measure_bandwidth(threads: int) -> float | None:
    """Bytes per second, the best of some reads of the same memory; None without native kernels."""
    try:
        pool = Threads(threads)
    except NativeUnavailable:
        return None
    memory = torch.full((_BYTES,), 1, dtype=torch.uint8)
    return 1e3 * _BYTES / fastest_ms(lambda: pool.read(memory), _REPEATS)


def weight_bytes(budget: Iterable[pb.MemoryLine]) -> int:
    """Bytes of linear layers that the verifier reads for a token, from the stack's memory budget."""
    return sum(line.bytes for line in budget if line.owner == "arena" and line.name.startswith("weights "))
