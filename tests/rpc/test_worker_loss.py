"""What the coordinator sees when a worker dies, hangs, or talks nonsense."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qspec.errors import ContractViolation, InvalidInput, QspecError, WorkerLost
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    SlotOutcome,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
)
from qspec.rpc.channel import open_channel, wait_for_ready
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from tests.contract.sequences import Sequence
from tests.fakes import FakeDrafter, FakeVerifier
from tests.served import served_drafter, served_verifier
from verifier.service import VerifierServicer

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for sockets, with a short name."""
    with tempfile.TemporaryDirectory(prefix="qspec-") as name:
        yield Path(name)


@contextlib.contextmanager
def worker(role: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_worker", role, str(directory)])
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def first_batch(about: VerifierDescription, lease: int = 1) -> VerifyBatch:
    """Prefill and decide."""
    sequence = Sequence(0, lease, list(PROMPT))
    batch = replace(sequence.prefill_batch(1), verifications=(sequence.verification(),))
    return replace(batch, epoch=about.epoch)


def test_killed_verifier(directory: Path) -> None:
    address = f"unix:{directory / 'verifier.sock'}"
    with contextlib.closing(RemoteVerifier(address, answer_timeout_s=10, load_timeout_s=20)) as verifier:
        with worker("verifier", directory) as process:
            about = verifier.describe()
            assert verifier.verify(first_batch(about)).results[0].outcome is SlotOutcome.OK
            process.kill()
            process.wait(10)
            started = time.monotonic()
            with pytest.raises(WorkerLost):
                verifier.verify(first_batch(about))
            with pytest.raises(WorkerLost):
                verifier.verify(first_batch(about))
            assert time.monotonic() - started < 5
        with worker("verifier", directory):  # its successor, at the same address
            about = verifier.describe()
            assert verifier.verify(first_batch(about)).results[0].outcome is SlotOutcome.OK


def test_drafter_is_told_to_stop(directory: Path) -> None:
    fake = FakeVerifier()
    address = f"unix:{directory / 'drafter.sock'}"
    with (
        contextlib.closing(fake),
        contextlib.closing(RemoteDrafter(address, answer_timeout_s=10, load_timeout_s=20)) as drafter,
        served_verifier(lambda: _Shared(fake), directory, lambda: fake.arena_fds) as verifier_address,
        contextlib.closing(RemoteVerifier(verifier_address)) as verifier,
        worker("drafter", directory) as process,
    ):
        about = verifier.describe()
        drafter.attach(about)
        verifier.verify(replace(first_batch(about), verifications=()))
        batch = DraftBatch(epoch=about.epoch, round=2, items=(Sequence(0, 1, list(PROMPT)).draft_item(3),))
        assert len(drafter.draft(batch).results[0].draft_tokens) == 3
        process.terminate()
        assert process.wait(10) == 0
        with pytest.raises(WorkerLost):
            drafter.draft(batch)


class _Shared(FakeVerifier):
    """A fake that outlives its server: closing it is left to its owner."""

    def __init__(self, fake: FakeVerifier) -> None:
        self._fake = fake

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._fake.describe()

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        return self._fake.verify(batch)

    def close(self) -> None:
        """Left to the owner."""


def test_late_answer_then_recovery(directory: Path) -> None:
    fake = FakeVerifier()
    with (
        served_verifier(lambda: fake, directory, lambda: fake.arena_fds) as address,
        contextlib.closing(RemoteVerifier(address, answer_timeout_s=0.3)) as verifier,
    ):
        about = verifier.describe()
        fake.delay_s = 0.8
        started = time.monotonic()
        with pytest.raises(WorkerLost, match="within 0.3 s"):
            verifier.verify(first_batch(about))
        assert 0.25 < time.monotonic() - started < 0.75
        fake.delay_s = 0.0
        time.sleep(0.7)  # the late batch comes to its end
        answer = verifier.verify(first_batch(about))  # what it decided is answered
        assert answer.results[0].outcome is SlotOutcome.OK
        assert len(answer.results[0].token_ids) == 1
        time.sleep(0.4)  # an idle stream is not late
        assert verifier.verify(first_batch(about)).results == answer.results


def test_one_stream_serves_all_batches(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = VerifierServicer.Verify

    async def counting(self: VerifierServicer, requests: Any, context: Any) -> AsyncIterator[Any]:
        opened.append(1)
        async for response in original(self, requests, context):
            yield response

    fake = FakeVerifier()
    monkeypatch.setattr(VerifierServicer, "Verify", counting)
    with (
        served_verifier(lambda: fake, directory, lambda: fake.arena_fds) as address,
        contextlib.closing(RemoteVerifier(address)) as verifier,
    ):
        about = verifier.describe()
        for _ in range(5):
            verifier.verify(first_batch(about))
    assert len(opened) == 1
    assert len(fake.batches) == 5


class _Nonsense(FakeDrafter):
    """Drafts one token more than it was asked for."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        answer = super().draft(batch)
        results = tuple(replace(result, draft_tokens=(*result.draft_tokens, 1)) for result in answer.results)
        return replace(answer, results=results)


class _Broken(FakeDrafter):
    """Has a bug."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        raise RuntimeError("secret")


@pytest.mark.parametrize(("drafter_class", "error"), [(_Nonsense, ContractViolation), (_Broken, QspecError)])
def test_drafter_talks_nonsense(
    directory: Path, drafter_class: type[FakeDrafter], error: type[Exception]
) -> None:
    fake = FakeVerifier()
    with contextlib.closing(fake), served_drafter(lambda: drafter_class(fake), directory) as address:
        about = fake.describe()
        fake.verify(replace(first_batch(about), verifications=()))
        batch = DraftBatch(epoch=about.epoch, round=2, items=(Sequence(0, 1, list(PROMPT)).draft_item(3),))
        with contextlib.closing(RemoteDrafter(address)) as drafter:
            for _ in range(2):  # the stream is opened again
                with pytest.raises(error) as caught:
                    drafter.draft(batch)
                assert "secret" not in str(caught.value)


def test_another_vocabulary_is_refused(directory: Path) -> None:
    fake = FakeVerifier()
    about = replace(fake.describe(), vocab_fingerprint="other")
    with (
        contextlib.closing(fake),
        served_drafter(FakeDrafter, directory) as address,
        contextlib.closing(RemoteDrafter(address)) as drafter,
        pytest.raises(InvalidInput, match="different vocabularies"),
    ):
        drafter.attach(about)


def test_nobody_listens(directory: Path) -> None:
    address = f"unix:{directory / 'nobody.sock'}"
    with open_channel(address) as channel, pytest.raises(WorkerLost, match=f"nobody listens at {address}"):
        wait_for_ready(channel, address, 0.2)
    with pytest.raises(InvalidInput, match="address"):
        open_channel("nonsense")


def test_closed_remote_refuses(directory: Path) -> None:
    drafter = RemoteDrafter(f"unix:{directory / 'nobody.sock'}")
    drafter.close()
    with pytest.raises(WorkerLost):
        drafter.draft(DraftBatch(epoch=1, round=1, items=()))
