"""How long a draft call and a verify call take when the workers do nothing: ``python -m tests.rpc.measure_round_trip``.

Each worker is a process of its own, as in a stack. Prints the median and the 90th percentile of a pair, in µs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qspec.interfaces import Admission, DraftBatch, DraftItem, PrefillChunk, Sampling, Verification, VerifyBatch
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier

_ROUNDS = 600
_WARM_UP = 100
_DRAFTS = 4
_MAX_LEN = 64


def main() -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as directory:
        workers = [
            subprocess.Popen([sys.executable, "-m", "tests.fake_worker", role, directory])
            for role in ("verifier", "drafter")
        ]
        verifier = RemoteVerifier(f"unix:{Path(directory) / 'verifier.sock'}")
        drafter = RemoteDrafter(f"unix:{Path(directory) / 'drafter.sock'}")
        try:
            about = verifier.describe()
            drafter.attach(about)
            spent, worked = _run(verifier, drafter, about.epoch)
        finally:
            verifier.close()
            drafter.close()
            for worker in workers:
                worker.terminate()
                worker.wait(10)
    deciles = statistics.quantiles(spent, n=10)
    print(f"pair: median {statistics.median(spent):.0f} µs, p90 {deciles[-1]:.0f} µs; in the engines "
          f"{statistics.median(worked):.0f} µs")


def _run(verifier: RemoteVerifier, drafter: RemoteDrafter, epoch: int) -> tuple[list[float], list[float]]:
    sampling = Sampling()
    tokens: list[int] = []
    spent, worked, lease = [], [], 0
    for number in range(1, _ROUNDS + 1):
        if not tokens or len(tokens) > _MAX_LEN:
            lease, tokens = lease + 1, [1, 2, 3]
            verifier.verify(VerifyBatch(
                epoch=epoch, round=number, admissions=(Admission(slot=0, lease=lease, sampling=sampling),),
                prefill_chunks=(PrefillChunk(slot=0, lease=lease, start=0, token_ids=tuple(tokens[:-1])),),
            ))
        length = len(tokens)
        started = time.perf_counter()
        draft = drafter.draft(DraftBatch(epoch=epoch, round=number, items=(DraftItem(
            slot=0, lease=lease, committed_len=length, pending_token=tokens[-1], draft_length=_DRAFTS,
            sampling=sampling,
        ),)))
        answer = verifier.verify(VerifyBatch(epoch=epoch, round=number, verifications=(Verification(
            slot=0, lease=lease, committed_len=length, pending_token=tokens[-1],
            draft_tokens=draft.results[0].draft_tokens,
        ),)))
        if number > _WARM_UP:
            spent.append((time.perf_counter() - started) * 1e6)
            worked.append((draft.timings.total_ns + answer.timings.total_ns) / 1e3)
        tokens += answer.results[0].token_ids
    return spent, worked


if __name__ == "__main__":
    main()
