"""Between the plain data of ``qspec.interfaces`` and the messages of ``qspec.v1``: what both workers' messages share.

``to_pb`` never sends what the other side would refuse to read, and ``from_pb`` never lets through what the types do not
promise: an enum value that is unknown or not set, a number outside its range. Either raises ``ContractViolation``. The
drafter's and the verifier's own messages are in ``qspec.rpc.drafter_codec`` and ``qspec.rpc.verifier_codec``, and how
tokens are drawn is in ``qspec.rpc.sampling_codec``. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from qspec.errors import ContractViolation
from qspec.interfaces import (
    ArenaBackend,
    ArenaDescriptor,
    MemoryItem,
    Region,
    RegionWriter,
    SlotOutcome,
    StageTimings,
)
from qspec.v1 import types_pb2

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Member = TypeVar("_Member")
_Value = TypeVar("_Value", bound=int)

_OUTCOMES = {
    SlotOutcome.OK: types_pb2.SLOT_OUTCOME_OK,
    SlotOutcome.STALE: types_pb2.SLOT_OUTCOME_STALE,
    SlotOutcome.NO_BLOCKS: types_pb2.SLOT_OUTCOME_NO_BLOCKS,
    SlotOutcome.DEAD_END: types_pb2.SLOT_OUTCOME_DEAD_END,
    SlotOutcome.LATE: types_pb2.SLOT_OUTCOME_LATE,
}
_BACKENDS = {
    ArenaBackend.HOST_SHM: types_pb2.ARENA_BACKEND_HOST_SHM,
    ArenaBackend.CUDA_IPC: types_pb2.ARENA_BACKEND_CUDA_IPC,
}
_WRITERS = {
    RegionWriter.VERIFIER: types_pb2.REGION_WRITER_VERIFIER,
    RegionWriter.DRAFTER: types_pb2.REGION_WRITER_DRAFTER,
}
_OUTCOMES_BACK = {value: member for member, value in _OUTCOMES.items()}
_BACKENDS_BACK = {value: member for member, value in _BACKENDS.items()}
_WRITERS_BACK = {value: member for member, value in _WRITERS.items()}


def checked(encode: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make an encoder raise ``ContractViolation`` for a number that its protobuf field cannot hold."""

    @functools.wraps(encode)
    def checked_encode(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return encode(*args, **kwargs)
        except (ValueError, TypeError) as error:
            raise ContractViolation(f"cannot be sent: {error}") from error

    return checked_encode


def require(condition: bool, description: str) -> None:
    """Raise ``ContractViolation`` with ``description`` unless ``condition`` holds."""
    if not condition:
        raise ContractViolation(description)


def time_left_from_pb(seconds: float | None) -> float | None:
    """Decode the time that is left of a batch."""
    require(seconds is None or 0.0 <= seconds < math.inf, "time_left_s must be a number of at least 0")
    return seconds


def outcome_to_pb(outcome: SlotOutcome) -> types_pb2.SlotOutcome:
    """Encode."""
    return _OUTCOMES[outcome]


def outcome_from_pb(value: int) -> SlotOutcome:
    """Decode."""
    return member(_OUTCOMES_BACK, value, "slot outcome")


def timings_to_pb(timings: StageTimings) -> types_pb2.StageTimings:
    """Encode."""
    return types_pb2.StageTimings(
        prepare_ns=timings.prepare_ns, forward_ns=timings.forward_ns, sample_ns=timings.sample_ns,
        total_ns=timings.total_ns,
    )


def timings_from_pb(message: types_pb2.StageTimings) -> StageTimings:
    """Decode."""
    return StageTimings(
        prepare_ns=message.prepare_ns, forward_ns=message.forward_ns, sample_ns=message.sample_ns,
        total_ns=message.total_ns,
    )


def memory_to_pb(items: Iterable[MemoryItem]) -> list[types_pb2.MemoryItem]:
    """Encode."""
    return [
        types_pb2.MemoryItem(name=item.name, bytes=item.bytes, shared=item.shared, mapped_file=item.mapped_file)
        for item in items
    ]


def memory_from_pb(messages: Iterable[types_pb2.MemoryItem]) -> tuple[MemoryItem, ...]:
    """Decode."""
    return tuple(
        MemoryItem(name=m.name, bytes=m.bytes, shared=m.shared, mapped_file=m.mapped_file) for m in messages
    )


@checked
def arena_to_pb(arena: ArenaDescriptor) -> types_pb2.ArenaDescriptor:
    """Encode."""
    return types_pb2.ArenaDescriptor(
        backend=_BACKENDS[arena.backend], device_uuid=arena.device_uuid, handle=arena.handle,
        reference=arena.reference, size=arena.size, epoch=arena.epoch, fingerprint=arena.fingerprint,
        regions=[
            types_pb2.ArenaRegion(
                name=r.name, dtype=r.dtype, shape=r.shape, offset=r.offset, writer=_WRITERS[r.writer], file=r.file)
            for r in arena.regions
        ],
        file_sizes=arena.file_sizes,
    )


def arena_from_pb(message: types_pb2.ArenaDescriptor) -> ArenaDescriptor:
    """Decode; every region starts inside the arena and has a name of its own."""
    regions = tuple(
        Region(name=r.name, dtype=r.dtype, shape=tuple(r.shape), offset=r.offset,
               writer=member(_WRITERS_BACK, r.writer, "region writer"), file=r.file)
        for r in message.regions
    )
    require(len({region.name for region in regions}) == len(regions), "two regions of an arena have the same name")
    sizes = (message.size, *message.file_sizes)
    require(all(region.file < len(sizes) for region in regions), "a region lies in a file that its arena does not have")
    require(all(region.offset <= sizes[region.file] for region in regions), "a region starts outside its arena")
    return ArenaDescriptor(
        backend=member(_BACKENDS_BACK, message.backend, "arena backend"), device_uuid=message.device_uuid,
        handle=message.handle, reference=message.reference, size=message.size, epoch=message.epoch,
        fingerprint=message.fingerprint, regions=regions, file_sizes=tuple(message.file_sizes),
    )


def member(members: Mapping[_Value, _Member], value: int, what: str) -> _Member:
    """What an enum's value stands for; ``ContractViolation`` for one that is unknown or not set."""
    try:
        return members[value]  # type: ignore[index]
    except KeyError:
        raise ContractViolation(f"unknown or missing {what}: {value}") from None
