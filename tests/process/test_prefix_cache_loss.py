"""A verifier's process that is killed while it prefills texts with a beginning in common: no text changes."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.engine.verifier import LocalVerifier
from qspec.errors import WorkerLost
from qspec.interfaces import Sampling, unwatched
from qspec.rpc.remote_verifier import RemoteVerifier
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop
from tests.engine.stacks import finish, generate
from tests.process.test_worker_pair import running
from tests.tiny_models import write_tiny_model

BEGINNING = [7 * index % 300 + 3 for index in range(70)]
SEEDED = Sampling(temperature=0.9, seed=12345)


def texts() -> list[Sequence]:
    """Three with the beginning in common, and a stranger."""
    prompts = [[*BEGINNING, 5], [*BEGINNING, 250, 4], [*BEGINNING[:40], 9, 9], [17, 3]]
    return [Sequence(str(index), prompt, 12, SEEDED) for index, prompt in enumerate(prompts)]


@contextlib.contextmanager
def verifier_process(options: list[str], epoch: int) -> Iterator[tuple[int, RemoteVerifier]]:
    """A verifier's process id, and what speaks to it."""
    with tempfile.TemporaryDirectory(prefix="qspec-") as parent:
        runtime_dir = Path(parent) / "runtime"
        runtime_dir.mkdir(mode=0o700)
        with (
            running("verifier", runtime_dir, f"--epoch={epoch}", *options) as (process, event),
            contextlib.closing(RemoteVerifier(event.address, answer_timeout_s=30)) as verifier,
        ):
            yield process.pid, verifier


@pytest.mark.parametrize("rounds", [0, 2])
def test_texts_survive_a_kill_in_the_middle_of_a_prefill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    write_tiny_model(tmp_path / "model", "smollm2")
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    config = StackConfig(
        model=str(tmp_path / "model"), draft_quantization="off", verify_quantization="none", max_slots=4,
        kv_tokens=512, block_size=16, max_batch_rows=16, threads=1, prefix_cache=False)
    with contextlib.closing(LocalVerifier.load(config, progress=unwatched, epoch=1)) as local:
        loop = SpeculationLoop()
        loop.attach_verifier(local)
        plain = [generate(loop, [one])[0] for one in texts()]
    options = [option for option in stack_options(config) if option != "--no-prefix-cache"]
    with verifier_process(options, 1) as (pid, verifier), verifier_process(options, 2) as (_, successor):
        loop = SpeculationLoop()
        loop.attach_verifier(verifier)
        assert verifier.describe().prefix_cache
        assert generate(loop, texts()[:1]) == plain[:1]
        several = texts()
        for one in several:
            loop.add(one)
        for _ in range(rounds):
            loop.step()
        assert any(one.cached_len < one.prompt_len - 1 for one in several), "the prefill is not over"
        os.kill(pid, signal.SIGSTOP)  # the batch is sent and not answered
        killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerLost):
            loop.step()
        killer.join()
        loop.attach_verifier(successor)
        assert finish(loop, several) == plain
        assert sum(one.stats.recomputations for one in several) >= 3
