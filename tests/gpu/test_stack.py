"""The whole stack on a GPU, as processes: the client's text does not depend on speculation."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from coordinator.private_stack import PrivateStack
from qspec.config import StackConfig

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(420)]

MODEL = os.environ.get("QSPEC_TEST_MODEL", "smollm2")
OPTIONS = ("--model", MODEL, "--device", "cuda", "--max-tokens", "48",
           "--prompt", "Why is the sky blue?")


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator.client", *OPTIONS, *arguments], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("sampling", [(), ("--temperature", "0.8", "--seed", "5")], ids=["greedy", "seeded"])
def test_drafts_change_no_text(sampling: tuple[str, ...]) -> None:
    texts = []
    for length in ("0", "4"):
        done = run_client(*sampling, "--draft-length", length, "--json")
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        texts.append([json.loads(line)["text"] for line in done.stdout.splitlines()])
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_a_method_without_a_kernel_is_refused_by_name() -> None:
    done = run_client("--draft-quantization", "fp4")
    assert done.returncode == 2
    assert "fp4 has no kernel on cuda; choose one of: none, int8, int4, fp8, w8a8, w4a8, auto, off" in done.stderr


def test_no_thread_of_a_worker_is_bound_to_fewer_cpus_than_the_process() -> None:
    """Two workers whose threads share one CPU take turns on it, while the others idle."""
    ours = os.sched_getaffinity(0)

    async def bound() -> dict[str, list[set[int]]]:
        config = StackConfig(model=MODEL, device="cuda", draft_quantization="fp8:plane", verify_quantization="none")
        async with PrivateStack(config, lambda _text, _share: None):
            return {
                role: [os.sched_getaffinity(thread.id) for thread in process.threads()]
                for process in psutil.Process().children(recursive=True)
                for role in ("verifier", "drafter") if role in process.cmdline()}

    of_workers = asyncio.run(bound())
    assert sorted(of_workers) == ["drafter", "verifier"]
    for role, threads in of_workers.items():
        assert all(cpus == ours for cpus in threads), f"{role}: {[len(cpus) for cpus in threads]} of {len(ours)} CPUs"
