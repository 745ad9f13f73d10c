"""Where regions lie: aligned, apart from each other, and the drafter's behind a page boundary."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.interfaces import RegionWriter
from qspec.memory.layout import PAGE, REGION_ALIGNMENT, ArenaLayout, RegionSpec, region_bytes, writable_boundary

_SPECS = st.lists(
    st.tuples(
        st.sampled_from([torch.float32, torch.int64, torch.int8, torch.float16]),
        st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
        st.sampled_from(RegionWriter),
    ),
    min_size=1,
    max_size=9,
).map(lambda parts: [RegionSpec(f"r{i}", dtype, shape, writer) for i, (dtype, shape, writer) in enumerate(parts)])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(specs=_SPECS)
def test_regions_are_aligned_and_apart(specs: list[RegionSpec]) -> None:
    layout = ArenaLayout.place(specs)
    assert sorted(region.name for region in layout.regions) == sorted(spec.name for spec in specs)
    by_name = {spec.name: spec for spec in specs}
    end = 0
    for region in layout.regions:
        spec = by_name[region.name]
        assert (getattr(torch, region.dtype), region.shape, region.writer) == (spec.dtype, spec.shape, spec.writer)
        assert region.offset % REGION_ALIGNMENT == 0
        assert region.offset >= end
        end = region.offset + region_bytes(region)
        assert region_bytes(region) == spec.bytes
    assert end <= layout.size
    assert layout.size % PAGE == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(specs=_SPECS)
def test_the_boundary_parts_the_writers(specs: list[RegionSpec]) -> None:
    layout = ArenaLayout.place(specs)
    boundary = writable_boundary(layout.regions, layout.size)
    assert boundary % PAGE == 0
    for region in layout.regions:
        if region.writer is RegionWriter.DRAFTER:
            assert region.offset >= boundary
        else:
            assert region.offset + region_bytes(region) <= boundary
    if all(spec.writer is RegionWriter.VERIFIER for spec in specs):
        assert boundary == layout.size


def test_an_empty_arena_still_has_a_page() -> None:
    assert ArenaLayout.place([]) == ArenaLayout((), PAGE)
