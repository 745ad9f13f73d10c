"""Planes that are split on a GPU have the bits of a CPU's, whatever the weights."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from qspec.engine.device_weights import stream_weights
from qspec.engine.weights import WeightRegion
from qspec.memory.cuda_arena import CudaArena
from qspec.memory.layout import RegionSpec
from qspec.quant.codecs import CODECS
from qspec.quant.planes import merge_fp16

pytestmark = pytest.mark.gpu

INPUTS, OUTPUTS = 576, 3072


class Source:
    """One layer in host memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def is_stored(self, name: str, weights_format: str) -> bool:
        return False

    def parts(self, name: str, weights_format: str) -> Mapping[str, Tensor]:
        return CODECS[weights_format].encode(self.tensors[name].t(), name)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    """``[in, out]``: magnitudes over many orders, rows whose largest lies exactly on a border, subnormals, zeros."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(INPUTS, OUTPUTS, generator=source)
    weight *= torch.exp2(torch.randint(-20, 12, (OUTPUTS,), generator=source).float())
    weight[0, :64] = 1.75 * torch.exp2(torch.arange(64).float() - 32)
    weight[:, 64] = 0
    weight[1:9, 65] = torch.tensor([2.0**-24, 3 * 2.0**-25, -(2.0**-14), 1.75, -1.75, 448 * 2.0**-8, 0.0, -0.0])
    return weight


@pytest.mark.parametrize("weights", [
    "fp32", "fp32-rows", "fp16-planes", "e4m3-plane", "e4m3-row", "int8-row", "int8-g64", "int8-nibbles-g64",
    "int4-plane-g64", "int4-g64", "nvfp4",
])
def test_every_format_has_the_bits_of_a_cpu(weight: Tensor, weights: str) -> None:
    shapes = CODECS[weights].shapes(OUTPUTS, INPUTS, "x")
    wanted = [
        WeightRegion(RegionSpec(f"x.{part}", dtype, shape), "x", weights, part)
        for part, (dtype, shape) in shapes.items()
    ]
    arena = CudaArena.create([region.spec for region in wanted], epoch=1, fingerprint="f")
    stream_weights(arena, wanted, Source({"x": weight}), lambda text, share: None, chunk_bytes=1 << 20)
    expected = CODECS[weights].encode(weight.t(), "x")
    for part in shapes:
        found = arena.tensor(f"x.{part}").cpu().contiguous().view(torch.uint8)
        assert torch.equal(found, expected[part].contiguous().view(torch.uint8)), part
    arena.close()


def test_planes_give_their_weights_back_on_the_gpu(weight: Tensor) -> None:
    parts = CODECS["fp16-planes"].encode(weight.t(), "x")
    merged = merge_fp16(parts["high"].cuda(), parts["low"].cuda())
    assert torch.equal(merged.cpu().view(torch.int16), merge_fp16(parts["high"], parts["low"]).view(torch.int16))


def test_an_arena_outlives_close_as_long_as_a_tensor_does() -> None:
    arena = CudaArena.create([RegionSpec("x", torch.float32, (1 << 20,))], epoch=1, fingerprint="f")
    tensor = arena.tensor("x")
    arena.close()
    assert arena.is_mapped
    assert float(tensor.fill_(2).sum()) == 2.0 * (1 << 20)
    del tensor
    assert not arena.is_mapped


def test_an_arena_opens_in_the_process_that_made_it() -> None:
    created = CudaArena.create([RegionSpec("x", torch.float32, (8,))], epoch=1, fingerprint="f")
    opened = CudaArena.open(created.descriptor)
    created.tensor("x").fill_(3)
    assert opened.tensor("x").tolist() == [3.0] * 8
    assert opened.device.type == "cuda"
