"""Which format holds a layer that is made of several quantised weights, and that it holds the very numbers."""

from __future__ import annotations

import pytest
import torch

from qspec.models.packed_weight import Offset, PackedWeight, Packing, format_of, to_parts
from qspec.quant.codecs import CODECS


def packing(bits: int, size: int | None, offset: Offset = Offset.NONE) -> Packing:
    return Packing(description="", bits=bits, group_size=size, offset=offset)


@pytest.mark.parametrize(
    ("packings", "expected"),
    [
        ([packing(4, 64)] * 3, "int4-g64"),
        ([packing(4, 64), packing(4, 64, Offset.ZERO_POINT)], "int4-g64-asymmetric"),
        ([packing(4, 256)], "int4-g128"),
        ([packing(4, 96)], "int4-g32"),
        ([packing(4, 16)], None),
        ([packing(4, 48)], None),
        ([packing(4, 32, Offset.MINIMUM)] * 2, "int4-g32-minimum"),
        ([packing(4, 64, Offset.MINIMUM)], "int4-g32-minimum"),
        ([packing(4, 32, Offset.MINIMUM), packing(4, 32)], None),
        ([packing(8, 384)], "int8-row"),
        ([packing(8, 128)], "int8-g128"),
        ([packing(8, 64, Offset.ZERO_POINT)], None),
        ([packing(8, 32), packing(4, 32)], None),
        ([packing(4, 32), packing(4, 64)], None),
        ([packing(4, 64), None], None),
        ([packing(4, 64), packing(0, None)], None),
        ([None, None], None),
    ],
)
def test_the_format_of_joined_weights(packings: list[Packing | None], expected: str | None) -> None:
    assert format_of(packings, 384) == expected


def test_symmetric_and_asymmetric_weights_in_one_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(16, 2, generator=generator)
    symmetric = PackedWeight(codes=(torch.arange(16 * 256).view(16, 256) % 16 - 8).to(torch.int8), scales=scales)
    zeros = torch.randint(0, 16, (16, 2), generator=generator).to(torch.uint8)
    asymmetric = PackedWeight(
        codes=torch.randint(0, 16, (16, 256), generator=generator).to(torch.uint8), scales=scales, offsets=zeros)
    joined = torch.cat([symmetric.decode(), asymmetric.decode()])
    for size in (128, 64, 32):  # finer groups hold the same numbers
        weights_format = f"int4-g{size}-asymmetric"
        parts = to_parts([symmetric, asymmetric], weights_format)
        announced = CODECS[weights_format].shapes(32, 256, "w")
        assert {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts.items()} == announced
        assert torch.equal(CODECS[weights_format].decode(parts), joined)
