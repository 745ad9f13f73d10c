from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA GPUs comes for Linux")


@pytest.mark.timeout(300)
def test_every_tile_of_the_table_multiplies_with_one_kind_of_instruction() -> None:
    """Compiled for Hopper, which needs no GPU; another process, because this one's kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.compiled", "--quick"], capture_output=True, text=True, check=False,
        env=environment, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    variants = json.loads(done.stdout.splitlines()[-1])
    assert len(variants) >= 5
    assert {tuple(variant["instructions"]) for variant in variants} == {("wgmma m64k16",)}
    assert all(variant["spilled_bytes"] == 0 for variant in variants)
    assert not any(variant["serialised"] for variant in variants if "each_waits=False" in variant["tile"])
