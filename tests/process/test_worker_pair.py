"""The two worker programs as the supervisor starts them, with the real engines over a tiny model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.errors import WorkerLost
from qspec.interfaces import DraftBatch, SlotOutcome
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from qspec.status import EventKind, StatusEvent, read_events
from tests.contract.sequences import Sequence
from tests.tiny_models import write_tiny_model

EPOCH = 41


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackConfig:
    """A small stack."""
    write_tiny_model(tmp_path / "model", "smollm2")
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    return StackConfig(model=str(tmp_path / "model"), max_slots=2, kv_tokens=128, block_size=16, threads=1)


@contextlib.contextmanager
def running(worker: str, runtime_dir: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], StatusEvent]]:
    """A worker and its last status event; its lifeline breaks at the end of the block."""
    lifeline_end, lifeline = os.pipe()
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", worker, f"--listen=unix:{runtime_dir}/{worker}.sock", f"--runtime-dir={runtime_dir}",
         f"--status-fd={writing}", f"--lifeline-fd={lifeline_end}", *options],
        pass_fds=[writing, lifeline_end],
    ) as process:
        os.close(writing)
        os.close(lifeline_end)
        try:
            with os.fdopen(reading, "rb") as stream:
                yield process, next(event for event in read_events(stream) if event.kind is not EventKind.STAGE)
        finally:
            os.close(lifeline)
            process.wait(20)


def test_a_round_over_real_processes(config: StackConfig) -> None:
    options = stack_options(config)
    with tempfile.TemporaryDirectory(prefix="qspec-") as parent:
        runtime_dir = Path(parent) / "runtime"
        runtime_dir.mkdir(mode=0o700)
        with (
            running("verifier", runtime_dir, f"--epoch={EPOCH}", *options) as (verifier_process, verifier_event),
            running("drafter", runtime_dir, *options) as (drafter_process, drafter_event),
            contextlib.closing(RemoteVerifier(verifier_event.address, answer_timeout_s=30)) as verifier,
            contextlib.closing(RemoteDrafter(drafter_event.address, answer_timeout_s=30)) as drafter,
        ):
            assert (verifier_event.kind, verifier_event.detail) == (EventKind.READY, {"epoch": EPOCH})
            about = verifier.describe()
            assert about.epoch == EPOCH
            assert about.arena.reference == f"unix:{runtime_dir}/arena.sock"
            assert drafter.attach(about).epoch == EPOCH
            sequence = Sequence(0, 1, [3, 1, 4, 1, 5])
            first = replace(sequence.prefill_batch(1), epoch=EPOCH)
            assert verifier.verify(first).results[0].outcome is SlotOutcome.OK
            batch = DraftBatch(epoch=EPOCH, round=2, items=(sequence.draft_item(4),))
            drafts = drafter.draft(batch).results[0].draft_tokens
            assert len(drafts) == 4
            decided = replace(first, round=2, admissions=(), prefill_chunks=(),
                              verifications=(sequence.verification(drafts),))
            assert verifier.verify(decided).results[0].outcome is SlotOutcome.OK

            drafter_process.send_signal(signal.SIGTERM)
            assert drafter_process.wait(20) == 0
            with pytest.raises(WorkerLost):
                drafter.draft(batch)
            assert verifier.verify(decided).results[0].accepted <= 4  # goes on without it
        assert verifier_process.returncode == 0
        assert not runtime_dir.exists()  # the lifeline's end took it along
