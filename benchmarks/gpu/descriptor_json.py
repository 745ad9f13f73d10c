"""Arena descriptors and regions as JSON, for the processes of a benchmark alone: between workers they are protos."""

from __future__ import annotations

from typing import Any

import torch

from qspec.interfaces import ArenaBackend, ArenaDescriptor, Region, RegionWriter
from qspec.memory.layout import RegionSpec


def specs_to_json(specs: list[RegionSpec]) -> list[Any]:
    """Name, dtype, shape and writer of each."""
    return [
        [spec.name, str(spec.dtype).removeprefix("torch."), list(spec.shape), spec.writer.value] for spec in specs]


def specs_from_json(record: list[Any]) -> list[RegionSpec]:
    """The inverse of ``specs_to_json``."""
    return [
        RegionSpec(name, getattr(torch, dtype), tuple(shape), RegionWriter(writer))
        for name, dtype, shape, writer in record
    ]


def descriptor_to_json(descriptor: ArenaDescriptor) -> dict[str, Any]:
    """Everything that ``CudaArena.open`` needs."""
    return {
        "device_uuid": descriptor.device_uuid, "handle": descriptor.handle.hex(), "size": descriptor.size,
        "epoch": descriptor.epoch, "fingerprint": descriptor.fingerprint,
        "regions": [
            [region.name, region.dtype, list(region.shape), region.offset, region.writer.value]
            for region in descriptor.regions
        ],
    }


def descriptor_from_json(record: dict[str, Any]) -> ArenaDescriptor:
    """The inverse of ``descriptor_to_json``."""
    regions = tuple(
        Region(name=name, dtype=dtype, shape=tuple(shape), offset=offset, writer=RegionWriter(writer))
        for name, dtype, shape, offset, writer in record["regions"]
    )
    return ArenaDescriptor(
        backend=ArenaBackend.CUDA_IPC, device_uuid=record["device_uuid"], handle=bytes.fromhex(record["handle"]),
        reference="", size=record["size"], epoch=record["epoch"], fingerprint=record["fingerprint"], regions=regions,
    )
