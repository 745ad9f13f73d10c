"""The coordinator's server program: tokenizer, engine, workers and the public service put together."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from coordinator.drain import drain
from coordinator.engine import Engine
from coordinator.messages import info_message
from coordinator.mps import mps_for_workers
from coordinator.public_port import PublicPort
from coordinator.runtime_directory import runtime_directory
from coordinator.service import GenerationService
from coordinator.serving import ServerState, Serving
from coordinator.stack import Stack
from coordinator.start_progress import StartProgress
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.errors import InvalidInput
from qspec.grammar import Grammars
from qspec.interfaces import VerifierDescription
from qspec.lifeline import watch_lifeline
from qspec.memory.budget import budget_table
from qspec.models.converted import prepare_tokenizer
from qspec.models.text_stream import TextStream
from qspec.models.tokenizer import Tokenizer
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import NO_DRAFTER, Backend, Role
from qspec.rpc.server import Service, serve
from qspec.speculation import SpeculationLoop
from qspec.status import Status
from qspec.v1 import generation_pb2_grpc

SERVICE_NAME = "qspec.v1.GenerationService"


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
    verifier_address: str | None
    """A verifier that somebody else runs."""
    drafter_address: str | None
    """A drafter that somebody else runs."""
    max_waiting: int
    """Requests that may wait for a slot."""
    max_buffered_tokens: int
    """Tokens that are kept for a client that does not take them."""
    grace_s: float
    """Seconds that requests get to end after SIGTERM."""
    announce: bool
    """Print the memory budget: no parent asks for it."""


async def serve_coordinator(options: Options, status: Status) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

    Raises what keeps the stack from starting or from going on.
    """
    if options.verifier_address is None:
        check_methods(options.config, Role.VERIFY, configured_backend(options.config))
    if options.drafter_address is None:
        check_methods(options.config, Role.DRAFT, configured_backend(options.config))
    with runtime_directory(options.runtime_dir) as (directory, made):
        if options.lifeline_fd is not None:
            watch_lifeline(options.lifeline_fd, runtime_dir=directory if made else None)
        with _workers_environment(options, directory, status) as environment:
            await _serve(options, directory, status, environment)


@contextlib.contextmanager
def _workers_environment(options: Options, directory: Path, status: Status) -> Iterator[Mapping[str, str]]:
    """What to add to the environment of the workers while it is entered: on a GPU, the way to MPS."""
    workers_elsewhere = options.verifier_address is not None or options.drafter_address is not None
    alone = options.config.draft_quantization == NO_DRAFTER
    if workers_elsewhere or alone or configured_backend(options.config) is not Backend.CUDA:
        yield {}
        return
    with mps_for_workers(directory / "mps", lambda text: status.stage(text, 0.0)) as added:
        yield added


async def _serve(options: Options, directory: Path, status: Status, environment: Mapping[str, str]) -> None:
    config, event_loop = options.config, asyncio.get_running_loop()
    serving = Serving(model=config.model, max_waiting=options.max_waiting)
    drafting = options.drafter_address is not None or config.draft_quantization != NO_DRAFTER
    roles = ("verifier", "drafter") if drafting else ("verifier",)
    stop = asyncio.Event()
    failures: list[BaseException] = []

    def tell(text: str, fraction: float) -> None:
        serving.stage = text
        status.stage(text, fraction)

    def make_engine(observer: Stack, description: VerifierDescription) -> Engine:
        tokenizer = Tokenizer.load(prepare_tokenizer(config.model))
        if tokenizer.vocab_fingerprint != description.vocab_fingerprint:
            raise InvalidInput.field(
                "model", f"the verifier's model ({description.model}) has another vocabulary than {config.model}; give "
                         "coordinator and verifier the same --model")
        serving.tokenizer = tokenizer
        serving.constraints = Grammars(lambda: tokenizer, vocab_size=description.vocab_size)
        engine = Engine(
            SpeculationLoop(), eos_token_ids=tokenizer.eos_token_ids, text_source=lambda: TextStream(tokenizer),
            observer=observer, max_active=description.max_slots + options.max_waiting,
            max_buffered_tokens=options.max_buffered_tokens,
        )
        engine.start(event_loop)
        return engine

    def fail(error: BaseException) -> None:
        failures.append(error)
        stop.set()

    stack = Stack(
        config, serving, StartProgress(roles, tell), runtime_dir=directory,
        verifier_address=options.verifier_address, drafter_address=options.drafter_address, make_engine=make_engine,
        environment=environment,
    )
    stack.on_failure = lambda error: _call_soon(event_loop, fail, error)

    async def prepare() -> None:
        await asyncio.to_thread(stack.start)
        serving.state, serving.stage = ServerState.SERVING, "ready"

    def on_serving(address: str) -> None:
        if options.announce:
            sys.stderr.write(f"memory of the stack:\n{budget_table(info_message(serving).memory)}\n")
        status.ready(address, model=config.model)

    service = GenerationService(serving, options.port.keys)

    def register(server: grpc.aio.Server) -> None:
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(service, server)

    try:
        await serve(
            [Service(name=SERVICE_NAME, register=register)], options.port.listen, prepare=prepare,
            on_serving=on_serving, drain=lambda: drain(serving, 0.0 if failures else options.grace_s), stop=stop,
            grace_s=1.0, public=True, access=options.port.access(),
        )
    finally:
        await asyncio.to_thread(stack.stop)
    if failures:
        raise failures[0]


def _call_soon(event_loop: asyncio.AbstractEventLoop, call: object, error: BaseException) -> None:
    """Call ``call(error)`` on the event loop unless that is over."""
    with contextlib.suppress(RuntimeError):
        event_loop.call_soon_threadsafe(call, error)  # type: ignore[arg-type]
