"""A worker's process around its server: tied to its parent, quiet, told how many threads to use."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qspec.cli import EXIT_ERROR
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.engine.backend import machine_backend
from qspec.errors import InvalidInput, QspecError
from qspec.lifeline import watch_lifeline
from qspec.log_format import LogFormat, configure_logging
from qspec.models.arrival import model_arrival
from qspec.quant.methods import Backend
from qspec.rpc.addresses import parse_address
from qspec.rpc.options import quieten_grpc
from qspec.socket_path import make_private_directory
from qspec.status import Status
from qspec.threads import configure_threads, share_interpreter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """What a worker's program needs to know of its process."""

    config: StackConfig
    """The stack's configuration."""
    listen: str
    """Address to listen at."""
    runtime_dir: Path
    """Directory for sockets, mode 0700; made when missing."""
    status: Status
    """Where to tell how loading goes."""
    wait_for_model_s: float = 0.0
    """Seconds that the model's files have to come."""

    @classmethod
    def start(cls, args: argparse.Namespace, config: StackConfig) -> WorkerProcess:
        """Do what comes before the first import of gRPC and torch; ``args`` are those of ``add_process_arguments``."""
        runtime_dir = args.runtime_dir or _directory_of(args.listen)
        if args.lifeline_fd is not None:
            watch_lifeline(args.lifeline_fd, runtime_dir=args.runtime_dir)
        configure_logging(args)
        quieten_grpc()
        share_interpreter()
        configure_threads(config.threads, bind=computes_by_torch(config))
        status = Status(args.status_fd, as_log=LogFormat(args.log_format) is LogFormat.JSON)
        return cls(
            config=config, listen=args.listen, runtime_dir=runtime_dir, status=status,
            wait_for_model_s=args.wait_for_model)

    async def prepare(self, load: Callable[[], Awaitable[None]]) -> None:
        """What comes before the worker serves: the model's files, then ``load``."""
        await model_arrival(self.config.model, self.wait_for_model_s, self.status.stage)
        await load()

    def run(self, program: Callable[[], Coroutine[Any, Any, None]]) -> NoReturn:
        """Run the server to its end and end the process; a deliberate error is told through ``status``.

        A place for its sockets that cannot be used is one, before anything is loaded.

        The process ends at once, without the interpreter's own end, because the engine's thread may still be deep in
        the loading of a model, and native code in a daemon thread does not survive that.
        """
        code = 0
        try:
            parse_address(self.listen, "listen")
            make_private_directory(self.runtime_dir, "runtime_dir")
            asyncio.run(program())
        except QspecError as error:
            self.status.error(error)
            code = EXIT_ERROR
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def computes_by_torch(config: StackConfig) -> bool:
    """Whether a worker is meant to compute with torch's own threads. Found out before torch is loaded.

    A worker on a GPU does not, with native kernels for the CPU or without: its one thread would be bound to the first
    CPU, as the other worker's would, and whoever wakes the other one would wait behind it.
    """
    if configured_backend(config) is Backend.CUDA:
        return False
    return config.kernels == "torch" or machine_backend() is Backend.CPU


def _directory_of(listen: str) -> Path:
    if not listen.startswith("unix:"):
        raise InvalidInput.field("runtime_dir", "must be given with a HOST:PORT address to listen at")
    return Path(listen.removeprefix("unix:")).parent
