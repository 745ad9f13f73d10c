"""``python -m benchmarks.serving.simulated_worker``: a verifier and a drafter in one process that compute nothing.

Both services of ``qspec.v1`` at one socket, on simulated workers (``benchmarks.simulated_workers``), so that a real
coordinator can be measured without a model in its way. A verify pass takes ``--pass-seconds`` of real time, however
many rows it has, a draft step an eighth of that; with 0 they answer at once.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import replace

from benchmarks.simulated_workers import AcceptanceModel, Machine, SimulatedPair, VirtualClock
from qspec.cli import EXIT_ERROR, add_process_arguments, run_program
from qspec.config import StackConfig
from qspec.cost_table import CalibratedCosts
from qspec.errors import QspecError
from qspec.interfaces import Drafter, Verifier
from qspec.lifeline import watch_lifeline
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from qspec.rpc.options import quieten_grpc
from qspec.status import Status

_AT_ONCE_S = 1e-9
"""What a pass is said to take when it takes no time."""
_STEP_SHARE = 0.125
_ROWS = 4096
WORD = " word"
"""What texts are made of."""


class PacedClock(VirtualClock):
    """Lets time pass by sleeping, or not at all."""

    def __init__(self, *, paced: bool) -> None:
        super().__init__()
        self._paced = paced

    def advance(self, seconds: float) -> None:
        """See ``VirtualClock``."""
        super().advance(seconds)
        if self._paced:
            time.sleep(seconds)


def simulated_pair(tokenizer: Tokenizer, *, slots: int, pass_s: float, acceptance: float) -> SimulatedPair:
    """A pair that a coordinator with this tokenizer takes for its own."""
    costs = CalibratedCosts(
        verify=((1, pass_s or _AT_ONCE_S),), draft_step=((1, _STEP_SHARE * (pass_s or _AT_ONCE_S)),))
    pair = SimulatedPair(
        Machine(costs=costs, noise=0.0, outliers=0.0),
        AcceptanceModel(mean=acceptance, spread=0.0, difficulty=0.0, insight=0.0),
        slots=slots, longest=8, seed=1, clock=PacedClock(paced=pass_s > 0), max_batch_rows=max(_ROWS, slots))
    pair.token = tokenizer.encode(WORD)[-1]
    pair.description = replace(
        pair.description, vocab_size=tokenizer.vocab_size, vocab_fingerprint=tokenizer.vocab_fingerprint)
    return pair


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.simulated_worker")
    add_process_arguments(parser)
    parser.add_argument("--model", default=StackConfig.default_of("model"), help="whose vocabulary to have")
    parser.add_argument("--slots", type=int, default=256, help="sequences at once")
    parser.add_argument("--pass-seconds", type=float, default=0.0, help="what a verify pass takes")
    parser.add_argument("--acceptance", type=float, default=0.8, help="chance of a draft")
    args = parser.parse_args()
    if args.lifeline_fd is not None:
        watch_lifeline(args.lifeline_fd, runtime_dir=None)
    quieten_grpc()
    status = Status(args.status_fd)
    try:
        asyncio.run(_serve(args, status))
    except QspecError as error:
        status.error(error)
        return EXIT_ERROR
    return 0


async def _serve(args: argparse.Namespace, status: Status) -> None:
    from drafter.service import DrafterServicer  # late: gRPC reads the environment that has just been set
    from qspec.rpc.engine_thread import EngineThread
    from qspec.rpc.server import serve
    from verifier.service import VerifierServicer

    tokenizer = Tokenizer.load(prepare_tokenizer(args.model))
    pair = simulated_pair(tokenizer, slots=args.slots, pass_s=args.pass_seconds, acceptance=args.acceptance)
    verifier: EngineThread[Verifier] = EngineThread(lambda: pair.verifier, name="verifier")
    drafter: EngineThread[Drafter] = EngineThread(lambda: pair.drafter, name="drafter")
    verifying, drafting = VerifierServicer(verifier, arena_reference=""), DrafterServicer(drafter)

    async def prepare() -> None:
        await verifier.loaded()
        await drafter.loaded()

    async def drain() -> None:
        await verifying.streams.drain()
        await drafting.streams.drain()

    try:
        await serve([verifying.service, drafting.service], args.listen, prepare=prepare, on_serving=status.ready,
                    drain=drain, grace_s=0.5)
    finally:
        await verifier.close()
        await drafter.close()


if __name__ == "__main__":
    run_program(main)
