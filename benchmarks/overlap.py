"""A verifier and a drafter of one stack, each alone and both at the same time.

The calls are those of the loop, over the loop's own interfaces, to worker processes as a coordinator starts them (on a
GPU under MPS). Sequences of a group are drafted for again and again, which changes nothing; those of the other are
verified with drafts that nobody drew, which makes rows as any. Every figure is a median of interleaved repeats.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coordinator.mps import mps_for_workers
from coordinator.supervisor import ChildProcess
from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.interfaces import (
    Admission,
    DraftBatch,
    Drafter,
    DraftItem,
    PrefillChunk,
    Release,
    Sampling,
    Verification,
    Verifier,
    VerifyAnswer,
    VerifyBatch,
)
from qspec.quant.methods import Backend
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier

_STOP_GRACE_S = 10.0
_LOOK_EVERY_S = 0.05
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What calls took for so many sequences and drafts, in seconds; 0 for drafts of no length."""

    sequences: int
    draft_length: int
    draft_s: float
    """For all sequences."""
    verify_s: float
    half_draft_s: float
    """For one half, while nobody verifies."""
    half_verify_s: float
    """For the other, while nobody drafts."""
    both_s: float
    """Both of these at the same time, until the later one ends."""

    @property
    def one_s(self) -> float:
        """A round of one group."""
        return self.draft_s + self.verify_s

    @property
    def two_s(self) -> float:
        """A round of two groups that alternate."""
        return 2 * self.both_s

    @property
    def overlap(self) -> float:
        """Of the shorter call, the share that the longer one hides."""
        shorter = min(self.half_draft_s, self.half_verify_s)
        return (self.half_draft_s + self.half_verify_s - self.both_s) / shorter if shorter else 0.0


def measure_overlaps(
    config: StackConfig, sequences: Sequence[int], draft_lengths: Sequence[int], *, prompt_tokens: int, repeats: int,
    tell: Tell,
) -> list[Overlap]:
    """Start the workers and measure every number of sequences with every draft length."""
    with worker_pair(config, tell) as (verifier, drafter):
        calls = Calls(verifier, drafter)
        found = []
        for count in sequences:
            for length in draft_lengths:
                calls.begin(count, prompt_tokens)
                found.append(_measure(calls, length, repeats))
                tell(f"{count} sequences, k = {length}: {1000 * found[-1].one_s:.1f} ms in one group, "
                     f"{1000 * found[-1].two_s:.1f} ms in two")
        calls.end()
    return found


def _measure(calls: Calls, length: int, repeats: int) -> Overlap:
    half = len(calls.texts) // 2
    everyone = range(len(calls.texts))
    first, second = everyone[:half], everyone[half:]
    times: dict[str, list[float]] = {name: [] for name in ("draft", "verify", "half draft", "half verify", "both")}
    with ThreadPoolExecutor(1) as drafting:
        for repeat in range(1 + repeats):
            taken = {"verify": calls.verify(everyone, length)}
            if length:
                taken["draft"] = calls.draft(everyone, length)
                taken["half draft"] = calls.draft(first, length)
                taken["half verify"] = calls.verify(second, length)
                started = time.perf_counter()
                drafted = drafting.submit(calls.draft, first, length)
                calls.verify(second, length)
                drafted.result()
                taken["both"] = time.perf_counter() - started
            for name, seconds in taken.items() if repeat else ():  # the first time is for warming up
                times[name].append(seconds)
    medians = {name: statistics.median(found) if found else 0.0 for name, found in times.items()}
    return Overlap(
        sequences=len(calls.texts), draft_length=length, draft_s=medians["draft"], verify_s=medians["verify"],
        half_draft_s=medians["half draft"], half_verify_s=medians["half verify"], both_s=medians["both"])


class Calls:
    """Sequences in slots, and timed calls for some of them. A draft call may run beside a verify call of others."""

    def __init__(self, verifier: Verifier, drafter: Drafter) -> None:
        self.texts: list[list[int]] = []
        """Committed tokens by slot."""
        self._verifier, self._drafter = verifier, drafter
        self._about = verifier.describe()
        self._lease = time.time_ns()
        self._round = 0
        self._lock = threading.Lock()

    def begin(self, count: int, prompt_tokens: int) -> None:
        """So many sequences in the place of those that were there, with prompts of so many tokens."""
        self.end()
        self._lease += 1
        vocabulary = self._about.vocab_size - 1
        self.texts = [[1 + (7 * slot + index) % vocabulary for index in range(prompt_tokens)] for slot in range(count)]
        self._send(admissions=tuple(
            Admission(slot=slot, lease=self._lease, sampling=Sampling(), prompt_len=prompt_tokens)
            for slot in range(count)))
        for slot, text in enumerate(self.texts):
            for start in range(0, len(text) - 1, self._about.max_batch_rows):
                tokens = tuple(text[start : len(text) - 1][: self._about.max_batch_rows])
                self._send(prefill_chunks=(
                    PrefillChunk(slot=slot, lease=self._lease, start=start, token_ids=tokens),))

    def end(self) -> None:
        """Give all slots back."""
        self._send(releases=tuple(Release(slot=slot, lease=self._lease) for slot in range(len(self.texts))))
        self.texts = []

    def draft(self, slots: Sequence[int], length: int) -> float:
        """Draft so many tokens for each; seconds."""
        items = tuple(
            DraftItem(
                slot=slot, lease=self._lease, committed_len=len(self.texts[slot]), pending_token=self.texts[slot][-1],
                draft_length=length, sampling=Sampling())
            for slot in slots)
        batch = DraftBatch(epoch=self._about.epoch, round=self._next_round(), items=items)
        started = time.perf_counter()
        answer = self._drafter.draft(batch)
        seconds = time.perf_counter() - started
        assert all(len(result.draft_tokens) == length for result in answer.results)
        return seconds

    def verify(self, slots: Sequence[int], length: int) -> float:
        """Verify so many drafts of each; seconds."""
        started = time.perf_counter()
        answer = self._send(verifications=tuple(
            Verification(
                slot=slot, lease=self._lease, committed_len=len(self.texts[slot]), pending_token=self.texts[slot][-1],
                draft_tokens=(1,) * length)
            for slot in slots))
        seconds = time.perf_counter() - started
        for result in answer.results:
            self.texts[result.slot] += result.token_ids
        return seconds

    def _send(
        self, *, admissions: tuple[Admission, ...] = (), prefill_chunks: tuple[PrefillChunk, ...] = (),
        verifications: tuple[Verification, ...] = (), releases: tuple[Release, ...] = (),
    ) -> VerifyAnswer:
        return self._verifier.verify(VerifyBatch(
            epoch=self._about.epoch, round=self._next_round(), admissions=admissions, prefill_chunks=prefill_chunks,
            verifications=verifications, releases=releases))

    def _next_round(self) -> int:
        with self._lock:
            self._round += 1
            return self._round


@contextlib.contextmanager
def worker_pair(config: StackConfig, tell: Tell) -> Iterator[tuple[Verifier, Drafter]]:
    """A verifier and a drafter in processes of their own; nothing is left behind."""
    directory = Path(tempfile.gettempdir()) / f"qspec-{secrets.token_hex(8)}"
    directory.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        environment: dict[str, str] = {}
        if configured_backend(config) is Backend.CUDA:
            environment = dict(stack.enter_context(mps_for_workers(directory / "mps", tell)))
        addresses = {role: f"unix:{directory / role}.sock" for role in ("verifier", "drafter")}
        for role, address in addresses.items():
            tell(f"starting the {role}")
            stack.enter_context(_child(role, address, directory, config, environment))
        verifier = stack.enter_context(contextlib.closing(RemoteVerifier(addresses["verifier"])))
        drafter = stack.enter_context(contextlib.closing(RemoteDrafter(addresses["drafter"], answer_timeout_s=60.0)))
        drafter.attach(verifier.describe())
        yield verifier, drafter


@contextlib.contextmanager
def _child(
    role: str, address: str, directory: Path, config: StackConfig, environment: dict[str, str]
) -> Iterator[None]:
    """A worker that listens."""
    child = ChildProcess(
        role, role, [f"--listen={address}", f"--runtime-dir={directory}", *stack_options(config)], lambda: None,
        environment)
    try:
        while child.ready is None:
            if child.ended:
                raise child.failure()
            time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        if not child.ended:
            child.terminate()
        child.close(_STOP_GRACE_S)
