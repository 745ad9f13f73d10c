"""Pairs of real processes with fake engines: they start together, are lost, come and go while texts are made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from coordinator.engine import Engine
from coordinator.messages import info_message
from coordinator.pair import Pair, PairState
from coordinator.pair_environment import PairEnvironments
from coordinator.pair_source import PairSource
from coordinator.pairs import Pairs
from coordinator.router import Router
from coordinator.runtime_directory import runtime_directory
from coordinator.serving import Serving
from coordinator.stack import Stack
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError
from qspec.interfaces import Sampling, VerifierDescription
from qspec.speculation import SpeculationLoop
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.stack_in_memory import NumberText, request
from tests.fakes import FakeVerifier
from tests.served import served_verifier
from tests.toy_model import continue_text

FAKES = {"verifier": "tests.coordinator.fake_process", "drafter": "tests.coordinator.fake_process"}
OWN = PairSource()


def expected(prompt: Sequence[int], count: int) -> str:
    return "".join(f"{token}," for token in continue_text(list(prompt), count, Sampling(), 97))


class Server:
    """Pairs, and what the service sees of them."""

    def __init__(self, pairs: Pairs, serving: Serving, told: list[float]) -> None:
        self.pairs, self.serving, self.told = pairs, serving, told
        self.failures: list[BaseException] = []
        pairs.on_failure = self.failures.append

    @property
    def router(self) -> Router:
        assert self.serving.router is not None
        return self.serving.router

    @property
    def states(self) -> list[PairState]:
        return [pair.state for pair in self.serving.pairs]

    def engine(self, index: int) -> Engine:
        engine = self.serving.pairs[index].engine
        assert engine is not None
        return engine

    def pid(self, pair: Pair, role: str) -> int:
        runner = next(runner for runner in self.pairs._runners if runner.pair is pair)
        assert runner._stack is not None
        child = next(worker for worker in runner._stack._workers if worker.role == role).child
        assert child is not None
        return child.pid

    async def text(self, prompt: Sequence[int], count: int) -> str:
        async with self.router.submit(request(prompt=prompt, max_tokens=count, draft_length=3)) as stream:
            return "".join([piece.text async for piece in stream])

    async def texts(self, count: int, prompts: int = 6) -> None:
        """Ask for texts, all at once, and look at each."""
        made = await asyncio.gather(*(self.text([number, 1, 2], count) for number in range(prompts)))
        assert made == [expected([number, 1, 2], count) for number in range(prompts)]


    @contextlib.asynccontextmanager
    async def load(self, clients: int) -> AsyncIterator[None]:
        """Clients that ask for one text after the other, and look at each, while this is entered."""
        over = asyncio.Event()

        async def ask(number: int) -> None:
            while not over.is_set():
                assert await self.text([number, 1, 2], 40) == expected([number, 1, 2], 40)

        asking = asyncio.gather(*map(ask, range(clients)))
        yield
        assert not asking.done()  # nobody has met an error
        over.set()
        await asking


@contextlib.asynccontextmanager
async def prepared(*sources: PairSource, grace_s: float = 0.0, **config: object) -> AsyncIterator[Server]:
    """Pairs that were not started."""
    event_loop, told = asyncio.get_running_loop(), list[float]()
    serving, settings = Serving(model="toy"), StackConfig(**config)  # type: ignore[arg-type]

    def make_engine(observer: Stack, description: VerifierDescription) -> Engine:
        if serving.router is None:
            serving.router = Router(eos_token_ids=frozenset(), text_source=NumberText, max_waiting=50)
            serving.router.start(event_loop)
        engine = Engine(SpeculationLoop(), home=serving.router, observer=observer)
        engine.start()
        return engine

    with runtime_directory(None) as (directory, _):
        pairs = Pairs(
            settings, serving, sources, directory=directory, make_engine=make_engine, grace_s=grace_s, modules=FAKES,
            environments=PairEnvironments(settings, several=True, tell=lambda text: None),
            tell=lambda text, fraction: told.append(fraction))
        try:
            yield Server(pairs, serving, told)
        finally:
            await asyncio.to_thread(pairs.stop)
        assert {path.name for path in directory.iterdir()} <= {"arena.sock"}


@contextlib.asynccontextmanager
async def started(*sources: PairSource, grace_s: float = 0.0, **config: object) -> AsyncIterator[Server]:
    """Pairs that serve."""
    async with prepared(*sources, grace_s=grace_s, **config) as server:
        await asyncio.to_thread(server.pairs.start)
        yield server


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def slow_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts take long enough to be disturbed."""
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "0.005")


def test_pairs_start_together_and_nothing_is_left_of_them() -> None:
    async def test() -> None:
        async with started(OWN, OWN) as server:
            assert server.states == [PairState.SERVING] * 2
            pids = [server.pid(pair, role) for pair in server.serving.pairs for role in ("verifier", "drafter")]
            assert len(set(pids)) == 4
            running = asyncio.ensure_future(server.texts(100))
            await until(lambda: server.engine(0).running > 0 and server.engine(1).running > 0)
            await until(lambda: server.engine(0).running + server.engine(1).running == 6)
            info = info_message(server.serving)
            assert [(pair.name, pair.state) for pair in info.pairs] == [
                ("1", pb.PAIR_STATE_SERVING), ("2", pb.PAIR_STATE_SERVING)]
            assert info.max_slots == 8 and info.num_blocks == 128
            assert sum(pair.running for pair in info.pairs) == info.running == 6
            await running
            assert server.told == sorted(server.told) and server.told[-1] <= 1
        assert not any(map(alive, pids))
    run(test)


def test_texts_of_a_killed_verifier_go_on_at_once_at_the_other_pair() -> None:
    async def test() -> None:
        async with started(OWN, OWN) as server:
            running = asyncio.ensure_future(server.texts(150))
            await until(lambda: server.engine(0).running > 0 and server.engine(1).running > 0)
            first = server.serving.pairs[0]
            os.kill(server.pid(first, "verifier"), signal.SIGKILL)
            await until(lambda: first.state is PairState.LOST)
            await running
            await until(lambda: first.state is PairState.SERVING)
            assert [pair.verifier_restarts for pair in server.serving.pairs] == [1, 0]
            await server.texts(30)
    run(test)


def test_pairs_are_added_and_taken_away_while_texts_are_made() -> None:
    async def test() -> None:
        async with started(OWN) as server, server.load(8):
            await until(lambda: server.router.running == 4)
            first = server.serving.pairs[0]
            gone = [server.pid(first, "verifier"), server.pid(first, "drafter")]
            server.pairs.change([OWN, OWN])
            await until(lambda: server.states == [PairState.SERVING] * 2)
            await until(lambda: server.router.running == 8)
            server.pairs._runners[0].retire()
            await until(lambda: server.serving.pairs[0] is not first)
            assert not any(map(alive, gone)) and len(server.serving.pairs) == 1
            server.pairs.change([OWN, OWN])
            await until(lambda: server.states == [PairState.SERVING] * 2)
            await until(lambda: server.router.running == 8)
        assert not server.failures
    run(test)


def test_a_pair_that_goes_may_end_its_texts_first() -> None:
    async def test() -> None:
        async with started(OWN, OWN, grace_s=30) as server:
            engine = server.engine(1)
            running = asyncio.ensure_future(server.texts(60))
            await until(lambda: engine.running > 0)
            streams = list(server.router.admission.streams)
            server.pairs.change([OWN])
            assert [pair.state for pair in server.serving.pairs].count(PairState.SERVING) >= 1
            await running
            assert all(stream.generation.sequence.stats.recomputations == 0 for stream in streams)
            await until(lambda: len(server.serving.pairs) == 1)
    run(test)


def test_a_pair_with_another_method_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    fake = FakeVerifier(methods=("toy", "other"))

    async def test() -> None:
        with served_verifier(lambda: fake, tmp_path, lambda: fake.arena_fds) as address:
            async with started(OWN) as server:
                server.pairs.change([OWN, PairSource(verifier=address)])
                await until(lambda: server.states == [PairState.SERVING, PairState.FAILED])
                assert server.serving.pairs[1].detail.startswith("verify_quantization: the verifier has other, and")
                await server.texts(20)
                assert len(fake.batches) == 0
                server.pairs.change([OWN])
                assert server.states == [PairState.SERVING]
            assert not server.failures
    run(test)


def test_a_pair_that_cannot_go_on_is_left_out_and_the_last_one_ends_the_server(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.worker.MAX_RESTARTS", 1)

    async def test() -> None:
        async with started(OWN, OWN) as server:
            pairs = server.serving.pairs
            running = asyncio.ensure_future(server.texts(150))
            await until(lambda: server.engine(0).running > 0 and server.engine(1).running > 0)
            monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "crash")
            os.kill(server.pid(pairs[0], "verifier"), signal.SIGKILL)
            await until(lambda: pairs[0].state is PairState.FAILED)
            assert "the verifier failed 2 times" in pairs[0].detail and not server.failures
            await running
            stream = server.router.submit(request(max_tokens=200))
            os.kill(server.pid(pairs[1], "verifier"), signal.SIGKILL)
            await until(lambda: bool(server.failures))
            with pytest.raises(QspecError, match="shutting down"):
                async for _ in stream:
                    pass
    run(test)


def test_an_own_pair_that_cannot_start_keeps_the_server_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_DRAFTER", "refuse")

    async def test() -> None:
        async with prepared(OWN, OWN) as server:
            with pytest.raises(InvalidInput, match="model: refused by the test"):
                await asyncio.to_thread(server.pairs.start)
    run(test)


def test_stop_while_pairs_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "slow")

    async def test() -> None:
        async with prepared(OWN, OWN) as server:
            starting = asyncio.ensure_future(asyncio.to_thread(server.pairs.start))
            await until(lambda: bool(server.told))
            await asyncio.to_thread(server.pairs.stop)
            with pytest.raises(QspecError, match="shutting down"):
                await starting
    run(test)


def test_somebody_else_s_pairs_join_when_they_are_there(tmp_path: Path) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    sources = [PairSource(verifier=f"unix:{directory}/verifier.sock") for directory in directories]
    fakes = [FakeVerifier(), FakeVerifier()]

    def serve(index: int) -> contextlib.AbstractContextManager[str]:
        directories[index].mkdir(mode=0o700)
        return served_verifier(lambda: fakes[index], directories[index], lambda: fakes[index].arena_fds)

    async def test() -> None:
        with contextlib.ExitStack() as running:
            await asyncio.to_thread(running.enter_context, serve(1))
            async with started(*sources, draft_quantization="off") as server:
                assert server.states == [PairState.STARTING, PairState.SERVING]
                await server.texts(20)
                await asyncio.to_thread(running.enter_context, serve(0))
                await until(lambda: server.states == [PairState.SERVING] * 2)
                await server.texts(20, prompts=8)
                assert all(len(fake.batches) > 10 for fake in fakes)
    run(test)
