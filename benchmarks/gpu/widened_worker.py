"""``python -m benchmarks.gpu.widened_worker ROLE FACTOR …``: a verifier or a drafter over a model that is widened as it
is loaded.

ROLE is ``verifier`` or ``drafter``, and what follows FACTOR is that program's command line: everything but the weights
is the program that users run, and 28 GB stay off the disk. The order of things is that of ``verifier.__main__``.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import drafter.__main__
import verifier.__main__
from qspec.cli import run_program, stack_config
from qspec.engine.backend import choose_backend
from qspec.interfaces import Drafter
from qspec.models.converted import ConvertedModel, prepare
from qspec.quant.methods import Backend
from qspec.worker_process import WorkerProcess


def main() -> NoReturn:
    """Serve until told to stop."""
    role, factor, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    parser = {"verifier": verifier.__main__, "drafter": drafter.__main__}[role].command_line()
    args = parser.parse_args(arguments)
    process = WorkerProcess.start(args, stack_config(args))
    if role == "drafter":
        from drafter.program import serve_drafter  # late: gRPC reads the environment that has just been set

        process.run(lambda: serve_drafter(process, load_engine=lambda of: _drafter(of, factor)))

    from qspec.engine.verifier import LocalVerifier
    from verifier.program import serve_verifier

    def load(of: WorkerProcess, epoch: int) -> LocalVerifier:
        return LocalVerifier.over(_model(of, factor), of.config, progress=of.status.stage, epoch=epoch)

    process.run(lambda: serve_verifier(process, epoch=args.epoch, load_engine=load))


def _drafter(process: WorkerProcess, factor: int) -> Drafter:
    from qspec.engine.drafter import LocalDrafter

    model = _model(process, factor)
    backend = choose_backend(process.config, model.config, process.status.stage)
    return LocalDrafter(model, process.config, backend, process.status.stage)


def _model(process: WorkerProcess, factor: int) -> ConvertedModel:
    from benchmarks.widened_model import WidenedModel  # imports torch

    original = prepare(process.config.model, progress=process.status.stage)
    backend = choose_backend(process.config, original.config, process.status.stage)
    return WidenedModel.of(original, factor, "cuda" if backend is Backend.CUDA else "cpu")


if __name__ == "__main__":
    run_program(main)
