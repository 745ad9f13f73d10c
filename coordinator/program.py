"""The coordinator's server program: tokenizer, router, pairs of workers and the public service put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from coordinator.drain import drain
from coordinator.engine import Engine
from coordinator.messages import info_message
from coordinator.metrics.endpoint import metrics_endpoint
from coordinator.pair_environment import PairEnvironments
from coordinator.pair_source import PairSource, watch_pairs
from coordinator.pairs import Pairs
from coordinator.public_port import PublicPort
from coordinator.router import Router
from coordinator.runtime_directory import runtime_directory
from coordinator.service import GenerationService
from coordinator.serving import ServerState, Serving
from coordinator.stack import Stack
from coordinator.telemetry import Telemetry
from coordinator.tokenizer_loader import TokenizerLoader
from coordinator.tracing.settings import make_tracer
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.errors import InvalidInput
from qspec.interfaces import VerifierDescription
from qspec.lifeline import watch_lifeline
from qspec.memory.budget import budget_table
from qspec.models.arrival import model_arrival
from qspec.models.text_stream import TextStream
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import Role
from qspec.rpc.server import Service, serve
from qspec.speculation import SpeculationLoop
from qspec.status import Status
from qspec.v1 import generation_pb2_grpc

SERVICE_NAME = "qspec.v1.GenerationService"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one coordinator was started with."""

    config: StackConfig
    """The stack's configuration."""
    port: PublicPort
    """The public port."""
    runtime_dir: Path | None
    """Directory for the workers' sockets; made when missing, temporary when None."""
    lifeline_fd: int | None
    """Pipe whose end means that the parent is gone."""
    pairs: tuple[PairSource, ...]
    """Where the workers come from, at least one pair; of ``pairs_file`` those that it named at the start."""
    pairs_file: Path | None
    """Names the pairs from then on."""
    max_waiting: int
    """Requests that may wait for a slot."""
    max_buffered_tokens: int
    """Tokens that are kept for a client that does not take them."""
    grace_s: float
    """Seconds that requests get to end after SIGTERM."""
    announce: bool
    """Print the memory budget: no parent asks for it."""
    metrics_listen: str | None = None
    """HOST:PORT for metrics; None: none are served."""
    trace_endpoint: str | None = None
    """URL of a collector for traces; None leaves it to the environment."""
    log_json: bool = False
    """Whether somebody's machine reads the log."""
    worker_options: tuple[str, ...] = ()
    """Options of the workers besides the stack's."""
    wait_for_model_s: float = 0.0
    """Seconds that the model's files have to come before any worker is started or asked."""


async def serve_coordinator(options: Options, status: Status) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

    Raises what keeps the stack from starting or from going on.
    """
    for role, foreign in (
        (Role.VERIFY, [source.verifier for source in options.pairs]),
        (Role.DRAFT, [source.drafter for source in options.pairs]),
    ):
        if None in foreign:
            check_methods(options.config, role, configured_backend(options.config))
    with runtime_directory(options.runtime_dir) as (directory, made):
        if options.lifeline_fd is not None:
            watch_lifeline(options.lifeline_fd, runtime_dir=directory if made else None)
        telemetry = Telemetry(make_tracer(options.trace_endpoint, os.environ))
        serving = Serving(model=options.config.model, max_waiting=options.max_waiting, telemetry=telemetry)
        try:
            with metrics_endpoint(options.metrics_listen, serving):
                await _serve(options, directory, status, serving)
        finally:
            await asyncio.to_thread(telemetry.tracer.close)


async def _serve(options: Options, directory: Path, status: Status, serving: Serving) -> None:
    config, event_loop = options.config, asyncio.get_running_loop()
    stop, making, loader = asyncio.Event(), threading.Lock(), TokenizerLoader(config.model)
    failures: list[BaseException] = []

    def tell(text: str, fraction: float) -> None:
        serving.stage = text
        status.stage(text, fraction)

    def make_router(description: VerifierDescription) -> Router:
        tokenizer, constraints = loader.wait()
        if tokenizer.vocab_fingerprint != description.vocab_fingerprint:
            raise InvalidInput.field(
                "model", f"the verifier's model ({description.model}) has another vocabulary than {config.model}; give "
                         "coordinator and verifier the same --model")
        serving.tokenizer, serving.constraints = tokenizer, constraints
        router = Router(
            eos_token_ids=tokenizer.eos_token_ids, text_source=lambda: TextStream(tokenizer),
            max_waiting=options.max_waiting, max_buffered_tokens=options.max_buffered_tokens,
            telemetry=serving.telemetry)
        router.start(event_loop)
        return router

    def make_engine(observer: Stack, description: VerifierDescription) -> Engine:
        with making:
            if serving.router is None:
                serving.router = make_router(description)
        engine = Engine(
            SpeculationLoop(max_prefill_s=config.max_prefill_s), home=serving.router, observer=observer)
        engine.start()
        return engine

    def fail(error: BaseException) -> None:
        failures.append(error)
        stop.set()

    several = len(options.pairs) > 1 or options.pairs_file is not None
    pairs = Pairs(
        config, serving, options.pairs, directory=directory, make_engine=make_engine, tell=tell,
        environments=PairEnvironments(config, several=several, tell=lambda text: status.stage(text, 0.0)),
        grace_s=options.grace_s, worker_options=options.worker_options)
    pairs.on_failure = lambda error: _call_soon(event_loop, fail, error)
    watching: list[asyncio.Task[None]] = []

    async def prepare() -> None:
        await model_arrival(config.model, options.wait_for_model_s, lambda text, _share: tell(text, 0.0))
        await asyncio.to_thread(pairs.start)
        if options.pairs_file is not None:
            watching.append(asyncio.ensure_future(watch_pairs(options.pairs_file, pairs.change)))
        serving.state, serving.stage = ServerState.SERVING, "ready"

    def on_serving(address: str) -> None:
        if options.announce:
            _announce_memory(serving, options)
        status.ready(address, model=config.model)

    service = GenerationService(serving, options.port.keys)

    def register(server: grpc.aio.Server) -> None:
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, server)

    try:
        await serve(
            [Service(name=SERVICE_NAME, register=register)], options.port.listen, prepare=prepare,
            on_serving=on_serving, drain=lambda: drain(serving, 0.0 if failures else options.grace_s), stop=stop,
            grace_s=1.0, public=True, access=options.port.access(serving.telemetry.call_unauthenticated),
        )
    finally:
        for task in watching:
            task.cancel()
        await asyncio.to_thread(pairs.stop)
    if failures:
        raise failures[0]


def _announce_memory(serving: Serving, options: Options) -> None:
    memory = info_message(serving).memory
    if options.log_json:
        logger.info("memory of the stack", extra={"facts": {"bytes": {
            f"{line.owner}: {line.name}": line.bytes for line in memory}}})
    else:
        sys.stderr.write(f"memory of the stack:\n{budget_table(memory)}\n")


def _call_soon(event_loop: asyncio.AbstractEventLoop, call: object, error: BaseException) -> None:
    """Call ``call(error)`` on the event loop unless that is over."""
    with contextlib.suppress(RuntimeError):
        event_loop.call_soon_threadsafe(call, error)  # type: ignore[arg-type]
