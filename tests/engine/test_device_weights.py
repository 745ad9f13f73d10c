"""Weights on their way into a GPU arena: the bits of the formats, in chunks, whatever the arena's memory is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec.engine.device_weights import stream_weights
from qspec.engine.weights import WeightRegion
from qspec.errors import InvalidInput
from qspec.memory.cuda_arena import CudaArena
from qspec.memory.layout import RegionSpec
from qspec.quant import codecs
from qspec.quant.codecs import CODECS
from tests.memory.fake_cuda import FakeCudaRuntime, FakeGpu

INPUTS, OUTPUTS = 128, 37


class FakeSource:
    """A model in memory, one layer of which came quantised."""

    def __init__(self, tensors: Mapping[str, Tensor], stored: Mapping[str, tuple[str, dict[str, Tensor]]]) -> None:
        self.tensors, self._stored = tensors, stored

    def is_stored(self, name: str, weights_format: str) -> bool:
        return name in self._stored and self._stored[name][0] == weights_format

    def parts(self, name: str, weights_format: str) -> Mapping[str, Tensor]:
        if self.is_stored(name, weights_format):
            return self._stored[name][1]
        return CODECS[weights_format].encode(self.tensors[name].t(), name)


@pytest.fixture
def weight() -> Tensor:
    """``[in, out]``; some rows have to be scaled, and some weights rounded."""
    values = torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(0))
    values[:, 5] *= 100
    values[3, 5] = 1.75 * 2**9
    return values


def regions(layer: str, weights: str) -> list[WeightRegion]:
    return [
        WeightRegion(RegionSpec(f"{layer}/{weights}/{part}", dtype, shape), layer, weights, part)
        for part, (dtype, shape) in CODECS[weights].shapes(OUTPUTS, INPUTS, layer).items()
    ]


def make_arena(wanted: list[WeightRegion]) -> CudaArena:
    runtime = FakeCudaRuntime(FakeGpu()).runtime()
    return CudaArena.create([each.spec for each in wanted], epoch=1, fingerprint="f", runtime=runtime)


def quiet(_text: str, _share: float | None) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("chunk_bytes", [1, 4 * INPUTS * 10, 1 << 30])
@pytest.mark.parametrize("weights", ["fp32", "fp32-rows", "fp16-planes", "e4m3-plane", "int8-g64", "nvfp4"])
def test_every_format_arrives_bit_for_bit(weight: Tensor, weights: str, chunk_bytes: int) -> None:
    wanted = regions("layers.0.qkv", weights)
    arena = make_arena(wanted)
    stream_weights(arena, wanted, FakeSource({"layers.0.qkv": weight}, {}), quiet, chunk_bytes=chunk_bytes)
    expected = CODECS[weights].encode(weight.t(), "layers.0.qkv")
    for region in wanted:
        stored = arena.tensor(region.spec.name)
        assert torch.equal(stored.view(torch.uint8), expected[region.part].contiguous().view(torch.uint8)), region.part


def test_codes_that_came_with_the_model_are_taken_over(weight: Tensor) -> None:
    stored = CODECS["int4-g64"].encode(weight.t() * 2, "x")
    wanted = regions("x", "int4-g64")
    arena = make_arena(wanted)
    stream_weights(arena, wanted, FakeSource({"x": weight}, {"x": ("int4-g64", stored)}), quiet)
    assert all(torch.equal(arena.tensor(each.spec.name), stored[each.part]) for each in wanted)


@pytest.mark.parametrize("is_stored", [False, True])
def test_rows_of_codes_may_be_longer_in_the_arena(weight: Tensor, is_stored: bool) -> None:
    parts = CODECS["int4-g64"].encode(weight.t(), "x")
    wanted = [
        replace(region, spec=replace(region.spec, shape=(OUTPUTS, 128))) if region.part == "codes" else region
        for region in regions("x", "int4-g64")
    ]
    arena = make_arena(wanted)
    source = FakeSource({"x": weight}, {"x": ("int4-g64", parts)} if is_stored else {})
    stream_weights(arena, wanted, source, quiet, chunk_bytes=4 * INPUTS * 10)
    codes = arena.tensor("x/int4-g64/codes")
    assert torch.equal(codes[:, : INPUTS // 2], parts["codes"])
    assert not codes[:, INPUTS // 2 :].any()


def test_rounded_weights_are_counted_and_told(weight: Tensor) -> None:
    wanted = [*regions("x", "fp16-planes"), *regions("y", "fp16-planes")]
    told: list[str] = []
    source = FakeSource({"x": weight, "y": weight.half().float()}, {})
    stream_weights(make_arena(wanted), wanted, source, lambda text, _share: told.append(text), chunk_bytes=1000)
    decoded = CODECS["fp16-planes"].decode(CODECS["fp16-planes"].encode(weight.t(), "x"))
    rounded = int((decoded.t() != weight).sum())
    assert 0 < rounded < weight.numel()
    assert f"{rounded} of {2 * weight.numel()} weights were rounded to fit fp16-planes" in told


def test_an_embedding_may_be_narrower_than_the_models(weight: Tensor) -> None:
    wanted = [WeightRegion(RegionSpec("weights/embed", torch.float16, (INPUTS, OUTPUTS)), "embed", "fp32", "")]
    arena, told = make_arena(wanted), []
    stream_weights(arena, wanted, FakeSource({"embed": weight}, {}), lambda text, _share: told.append(text))
    assert torch.equal(arena.tensor("weights/embed"), weight.half())
    assert any(text.endswith(f"of {weight.numel()} weights were rounded to fit float16") for text in told)


def test_no_more_than_a_chunk_is_encoded_at_once(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    codec = CODECS["fp16-planes"]

    def encode(values: Tensor, name: str) -> dict[str, Tensor]:
        seen.append(values.shape)
        return codec.encode(values, name)

    table = {**CODECS, "fp16-planes": replace(codec, encode=encode)}
    monkeypatch.setattr("qspec.engine.device_weights.CODECS", table)
    assert codecs.CODECS is not table
    wanted = regions("x", "fp16-planes")
    stream_weights(make_arena(wanted), wanted, FakeSource({"x": weight}, {}), quiet, chunk_bytes=4 * INPUTS * 10)
    assert [tuple(shape) for shape in seen] == [(10, INPUTS), (10, INPUTS), (10, INPUTS), (7, INPUTS)]


def test_each_tensor_is_made_once(weight: Tensor) -> None:
    class Made(dict[str, Tensor]):
        taken = 0

        def __getitem__(self, name: str) -> Tensor:
            self.taken += 1
            return super().__getitem__(name)

    wanted, tensors = regions("x", "fp16-planes"), Made(x=weight)
    stream_weights(make_arena(wanted), wanted, FakeSource(tensors, {}), quiet, chunk_bytes=1)
    assert tensors.taken == 1


def test_a_layer_that_cannot_be_encoded_is_named(weight: Tensor) -> None:
    weight[0, 0] = torch.nan
    wanted = regions("layers.3.mlp_in", "fp16-planes")
    with pytest.raises(InvalidInput, match=r"layers.3.mlp_in: contains NaN"):
        stream_weights(make_arena(wanted), wanted, FakeSource({"layers.3.mlp_in": weight}, {}), quiet)
