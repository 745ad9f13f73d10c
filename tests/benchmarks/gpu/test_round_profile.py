"""Where a round's time goes: every kernel that our sources launch has a kind, and overlapping ones are busy once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qspec.kernels.triton
from benchmarks.gpu.round_profile import ATTENTION, COPIES, DRAWING, OTHER, WEIGHTS, kind_of, spans_by_kind


def launched_kernels() -> Iterator[str]:
    """Names of the functions that are launched with a grid: ``kernel[grid](…)``."""
    for path in Path(qspec.kernels.triton.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        compiled = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            and any("jit" in ast.dump(decorator) for decorator in node.decorator_list)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(
                    node.func.value, ast.Name) and node.func.value.id in compiled:
                yield node.func.value.id


def test_every_kernel_of_ours_has_a_kind() -> None:
    names = set(launched_kernels())
    assert len(names) > 15 and {"plane_product", "group_product", "int8_product", "norm_kernel"} <= names
    assert {name: kind_of(name) for name in names if kind_of(name) == OTHER} == {}
    assert (kind_of("_merge"), kind_of("_bounds_kernel")) == (ATTENTION, DRAWING)


@pytest.mark.parametrize(("name", "kind"), [
    ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", WEIGHTS), ("void cutlass::Kernel2<cutlass_80_tensorop>", WEIGHTS),
    ("sm90_xmma_gemm_f16f16_f16f32", WEIGHTS), ("Memcpy HtoD (Pinned -> Device)", COPIES),
    ("void at::native::indexSelectSmallIndex<float>", COPIES), ("void at::native::vectorized_gather_kernel", COPIES),
    ("something strange", OTHER),
])
def test_kernels_of_libraries_have_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_overlapping_kernels_are_busy_once() -> None:
    spans = [("plane_product", 0.0, 10.0), ("_attend", 8.0, 14.0), ("strange", 20.0, 24.0)]
    found = spans_by_kind(spans, 2, 30e-6)
    assert found["kernels_us"]["weights"] == 5.0 and found["kernels_us"]["other"] == 2.0
    assert (found["busy_us"], found["nothing_runs_us"], found["round_us"]) == (9.0, 6.0, 15.0)
    assert found["others"] == {"strange": 1}
