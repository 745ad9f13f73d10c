"""What two worker processes keep for themselves: activations and code, no copy of the weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.interfaces import DraftBatch, MemoryItem, SlotOutcome
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from tests.contract.sequences import Sequence
from tests.engine.stacks import quiet
from tests.process.test_worker_pair import running
from tests.tiny_models import FAMILIES, write_tiny_model

WEIGHT_FILES = (".weights", "weights.safetensors")
SLACK = 0.25
"""Share of the weights that a process may differ by for other reasons, such as what its allocator keeps."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a process has mapped of the files of weights, in bytes."""

    resident: int
    proportional: int
    copied: int
    """Pages that are no longer the file's, but its own."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker after it answered."""

    anonymous: int
    """Memory that is in no file, its own alone."""
    mapped: Mapped
    budget: tuple[MemoryItem, ...]

    @property
    def planned(self) -> int:
        """What its budget has beside mapped files."""
        return sum(item.bytes for item in self.budget if not item.mapped_file)


def read_anonymous(pid: int) -> int:
    """All anonymous memory of a process, in bytes; the arena, which is shared, is none."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def read_mapped(pid: int) -> Mapped:
    """Sums over the mappings of weights (``/proc/PID/smaps``)."""
    sums = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    counted = False
    for line in Path(f"/proc/{pid}/smaps").read_text("utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counted = words[-1].endswith(WEIGHT_FILES)
        elif counted and words[0][:-1] in sums:
            sums[words[0][:-1]] += int(words[1]) * 1024
    return Mapped(sums["Rss"], sums["Pss"], sums["Anonymous"])


@contextlib.contextmanager
def answered(model: Path, draft: str, verify: str) -> Iterator[dict[str, Worker]]:
    """Both workers, in processes of their own, after a prompt, drafts and a decision."""
    config = StackConfig(
        model=str(model), draft_quantization=draft, verify_quantization=verify, max_slots=1, kv_tokens=64,
        block_size=16, threads=1,
    )
    LocalVerifier.load(config, progress=quiet, epoch=1).close()  # converts and writes, which leaves traces in a process
    LocalDrafter.load(config, progress=quiet).close()
    options = stack_options(config)
    with tempfile.TemporaryDirectory(prefix="qspec-") as parent:
        runtime_dir = Path(parent) / "runtime"
        runtime_dir.mkdir(mode=0o700)
        with (
            running("verifier", runtime_dir, "--epoch=1", *options) as (verifier_process, verifier_event),
            running("drafter", runtime_dir, *options) as (drafter_process, drafter_event),
            contextlib.closing(RemoteVerifier(verifier_event.address, answer_timeout_s=30)) as verifier,
            contextlib.closing(RemoteDrafter(drafter_event.address, answer_timeout_s=30)) as drafter,
        ):
            about = verifier.describe()
            attached = drafter.attach(about)
            sequence = Sequence(0, 1, [3, 1, 4, 1, 5])
            first = replace(sequence.prefill_batch(1), epoch=1)
            verifier.verify(first)
            answer = drafter.draft(DraftBatch(epoch=1, round=2, items=(sequence.draft_item(4),)))
            decided = replace(
                first, round=2, admissions=(), prefill_chunks=(),
                verifications=(sequence.verification(answer.results[0].draft_tokens),),
            )
            assert verifier.verify(decided).results[0].outcome is SlotOutcome.OK
            yield {
                name: Worker(read_anonymous(process.pid), read_mapped(process.pid), budget)
                for name, process, budget in (
                    ("verifier", verifier_process, about.memory), ("drafter", drafter_process, attached.memory)
                )
            }


@pytest.mark.parametrize(("draft", "verify"), [("fp8", "none:fp16"), ("int4", "none:fp32")])
def test_no_process_has_a_copy_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draft: str, verify: str
) -> None:
    """Two models, one of many small layers: what its workers hold more is in their budgets, or in files."""
    kind, settings = FAMILIES["llama_wide"]
    layers = {**settings, "num_hidden_layers": 64, "hidden_size": 256, "intermediate_size": 512}
    monkeypatch.setitem(FAMILIES, "llama_deep", (kind, layers))
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    found: dict[str, dict[str, Worker]] = {}
    for family in ("llama_wide", "llama_deep"):
        write_tiny_model(tmp_path / family, family)
        with answered(tmp_path / family, draft, verify) as workers:
            found[family] = workers
    deep, wide = found["llama_deep"], found["llama_wide"]
    shared = [item for item in deep["verifier"].budget if item.name.startswith(("weights", "embeddings"))]
    assert all(item.mapped_file and item.shared for item in shared)
    weights = sum(item.bytes for item in shared)
    own = sum(item.bytes for item in deep["drafter"].budget if item.mapped_file)
    assert weights > 50_000_000
    assert (own > 0) == (draft == "int4")
    for name, worker in deep.items():
        assert worker.mapped.copied == 0, name
        assert worker.anonymous - wide[name].anonymous < worker.planned - wide[name].planned + SLACK * weights, name
    assert deep["verifier"].mapped.resident > 0.95 * weights, "it did read them"
    total = sum(worker.mapped.proportional for worker in deep.values())
    assert total < 1.05 * (weights + own), "each page counts once, whoever maps it"
