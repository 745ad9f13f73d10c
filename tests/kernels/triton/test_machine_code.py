from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA GPUs comes for Linux"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU other tests run what is compiled here"),
]


def said(*program: str) -> Any:
    """The last line of a program that compiles kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", *program], capture_output=True, text=True, check=False, env=environment,
        cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compiled(option: str) -> list[dict[str, Any]]:
    """What ``benchmarks.gpu.compiled`` finds."""
    variants: list[dict[str, Any]] = said("benchmarks.gpu.compiled", option)
    return variants


@pytest.mark.timeout(300)
def test_every_tile_of_the_table_multiplies_with_one_kind_of_instruction() -> None:
    """Compiled for Hopper, which needs no GPU; another process, because this one's kernels may be interpreted."""
    variants = compiled("--quick")
    assert len(variants) >= 5
    assert {tuple(variant["instructions"]) for variant in variants} == {("wgmma m64k16",)}
    assert all(variant["spilled_bytes"] == 0 for variant in variants)
    assert not any(variant["serialised"] for variant in variants if "each_waits=False" in variant["tile"])


@pytest.mark.timeout(300)
def test_integers_compile_to_one_kind_of_instruction_each() -> None:
    variants = compiled("--integers")
    kinds = {(each["weights"].partition(" ")[0], *each["instructions"]) for each in variants}
    groups = {(name, "wgmma m64k16") for name in ("NIBBLES", "BOTH_NIBBLES", "BYTES")}
    assert kinds == {*groups, ("INT8_BY_INT8", "wgmma m64k32"), ("norm",)}
    assert not any(each["spilled_bytes"] or each["serialised"] for each in variants)


@pytest.mark.timeout(300)
def test_every_kind_of_gpu_has_room_for_its_tiles() -> None:
    """Two planes' largest tile for Hopper takes 144 KB where Ada has 99."""
    found = said("tests.kernels.triton.compiled_tiles", "80", "89", "90", "100", "120")
    for capability, (room, kernels) in found.items():
        assert len(kernels) >= 2
        assert all(shared <= room for shared in kernels.values()), (capability, kernels)
