"""The stack over real processes with fake engines: starts, losses, hangs, refusals, and an end without remains."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import coordinator.connections
import coordinator.worker
from coordinator.agreement import Agreement
from coordinator.engine import Engine
from coordinator.pair import Pair
from coordinator.router import Router
from coordinator.runtime_directory import runtime_directory
from coordinator.stack import Stack
from coordinator.start_progress import StartProgress
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError
from qspec.interfaces import Sampling, VerifierDescription
from qspec.speculation import SpeculationLoop
from tests.coordinator.stack_in_memory import NumberText, request
from tests.fakes import FakeDrafter, FakeVerifier
from tests.served import served_drafter, served_verifier
from tests.toy_model import continue_text

FAKES = {"verifier": "tests.coordinator.fake_process", "drafter": "tests.coordinator.fake_process"}
PROMPT = [1, 2, 3]


def expected(count: int) -> str:
    return "".join(f"{token}," for token in continue_text(PROMPT, count, Sampling(), 97))


class Running:
    """A stack, its view for the service, and the processes that it ever had."""

    def __init__(self, stack: Stack, pair: Pair, router: Router, told: list[tuple[str, float]]) -> None:
        self.stack, self.pair, self.router, self.told = stack, pair, router, told
        self.failures: list[BaseException] = []
        stack.on_failure = self.failures.append

    @property
    def engine(self) -> Engine:
        assert self.pair.engine is not None
        return self.pair.engine

    def pid(self, role: str) -> int:
        worker = next(worker for worker in self.stack._workers if worker.role == role)
        assert worker.child is not None
        return worker.child.pid

    async def text(self, count: int = 20, draft_length: int | None = 4) -> str:
        wanted = request(prompt=PROMPT, max_tokens=count, draft_length=draft_length)
        async with self.router.submit(wanted) as stream:
            return "".join([piece.text async for piece in stream])


@contextlib.asynccontextmanager
async def prepared(
    *, verifier_address: str | None = None, drafter_address: str | None = None, **config: object
) -> AsyncIterator[Running]:
    """A stack that was not started; workers that have addresses here are somebody else's."""
    event_loop = asyncio.get_running_loop()
    told: list[tuple[str, float]] = []
    pair = Pair()
    router = Router(eos_token_ids=frozenset(), text_source=NumberText, max_waiting=0)
    router.start(event_loop)
    settings = StackConfig(**config)  # type: ignore[arg-type]
    roles = ("verifier",) if settings.draft_quantization == "off" else ("verifier", "drafter")

    def make_engine(stack: Stack, description: VerifierDescription) -> Engine:
        engine = Engine(SpeculationLoop(), home=router, observer=stack)
        engine.start()
        router.add(engine, slots=8, blocks=0)
        return engine

    with runtime_directory(None) as (directory, _):
        stack = Stack(
            settings, pair, StartProgress(roles, lambda text, fraction: told.append((text, fraction))),
            agreement=Agreement(), runtime_dir=directory, verifier_address=verifier_address,
            drafter_address=drafter_address, make_engine=make_engine, modules=FAKES)
        try:
            yield Running(stack, pair, router, told)
        finally:
            await asyncio.to_thread(stack.stop)
        assert {path.name for path in directory.iterdir()} <= {"arena.sock"}


@contextlib.asynccontextmanager
async def started(*, verifier_address: str | None = None, **config: object) -> AsyncIterator[Running]:
    """A stack that is ready."""
    async with prepared(verifier_address=verifier_address, **config) as running:
        await asyncio.to_thread(running.stack.start)
        yield running


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


def test_start_generate_stop_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with started() as running:
            pids = [running.pid("verifier"), running.pid("drafter")]
            assert await running.text() == expected(20)
            assert running.pair.verifier is not None and running.pair.drafter is not None
            fractions = [fraction for _, fraction in running.told]
            assert fractions == sorted(fractions) and 0 < fractions[0] < fractions[-1] <= 1
            assert all(os.getsid(pid) == pid for pid in pids)  # out of a terminal's reach
        assert not any(map(alive, pids))
    run(test)


def test_without_a_drafter() -> None:
    async def test() -> None:
        async with started(draft_quantization="off") as running:
            assert await running.text() == expected(20)
            assert running.pair.drafter is None and running.pair.drafter_restarts == 0
    run(test)


def test_killed_drafter_is_replaced_and_no_token_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "0.005")

    async def test() -> None:
        async with started() as running:
            first = running.pid("drafter")
            text = asyncio.ensure_future(running.text(count=200))
            await until(lambda: running.engine.running == 1)
            os.kill(first, signal.SIGKILL)
            assert await text == expected(200)
            await until(lambda: running.pair.drafter is not None and running.pair.drafter_restarts == 1)
            assert running.pid("drafter") != first and running.pair.verifier_restarts == 0
            assert await running.text() == expected(20)
    run(test)


def test_hung_drafter_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator.connections, "DRAFT_TIMEOUT_S", 0.3)

    async def test() -> None:
        async with started() as running:
            hung = running.pid("drafter")
            os.kill(hung, signal.SIGSTOP)
            assert await running.text(count=60) == expected(60)
            await until(lambda: not alive(hung))
            await until(lambda: running.pair.drafter is not None)
            assert await running.text() == expected(20)
    run(test)


def test_killed_verifier_is_replaced_and_streams_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "0.005")

    async def test() -> None:
        async with started() as running:
            assert running.pair.verifier is not None
            epoch, drafter = running.pair.verifier.epoch, running.pid("drafter")
            texts = asyncio.gather(*(running.text(count=200) for _ in range(2)))
            await until(lambda: running.engine.running == 2)
            os.kill(running.pid("verifier"), signal.SIGKILL)
            assert await texts == [expected(200)] * 2
            assert running.pair.verifier_restarts == 1 and running.pair.verifier.epoch > epoch
            await until(lambda: running.pair.drafter is not None)
            assert running.pid("drafter") == drafter  # it let go of the old arena
            assert running.pair.epochs == 2
    run(test)


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_replaced_workers_are_given_what_auto_stood_for_at_first() -> None:
    """Another choice would change the text in the middle; what was named stays as it was named."""
    async def test() -> None:
        async with started(draft_quantization="w8a8") as running:
            assert "--verify-quantization=auto" in command_line(running.pid("verifier"))
            for role in ("verifier", "drafter"):
                first = running.pid(role)
                os.kill(first, signal.SIGKILL)
                await until(lambda first=first: not alive(first))  # type: ignore[misc]
                await until(lambda: running.pair.verifier is not None and running.pair.drafter is not None)
                assert await running.text() == expected(20)
                assert {"--verify-quantization=toy", "--draft-quantization=w8a8"} <= set(
                    command_line(running.pid(role)))
    run(test)


def test_workers_of_somebody_else_that_are_not_there_are_told_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.worker, "FOREIGN_TOLD_AFTER_S", 0.3)
    verifier, drafter = (f"unix:{tmp_path}/{role}.sock" for role in ("verifier", "drafter"))
    fake = FakeVerifier()

    async def test() -> None:
        async with prepared(verifier_address=verifier, drafter_address=drafter) as running:
            starting = asyncio.create_task(asyncio.to_thread(running.stack.start))
            await until(lambda: bool(running.told))
            with served_verifier(lambda: fake, tmp_path, lambda: fake.arena_fds):
                await until(lambda: len(running.told) > 1)
                with served_drafter(FakeDrafter, tmp_path):
                    await starting
                    await asyncio.to_thread(running.stack.stop)
            texts = [text for text, _ in running.told if "waiting" in text]
            absent = "nobody answers there (No such file or directory)"
            assert texts == [
                f"verifier: waiting for {verifier}: {absent}", f"drafter: waiting for {drafter}: {absent}"]
    run(test)


def test_a_verifier_of_somebody_else_may_not_come_back_with_another_method(tmp_path: Path) -> None:
    def verifier(method: str) -> contextlib.AbstractContextManager[str]:
        fake = FakeVerifier(methods=("w8a8", method))
        return served_verifier(lambda: fake, tmp_path, lambda: fake.arena_fds)

    async def test() -> None:
        with contextlib.ExitStack() as first:
            address = await asyncio.to_thread(first.enter_context, verifier("none:fp32"))
            async with started(verifier_address=address) as running:
                assert await running.text() == expected(20)
                await asyncio.to_thread(first.close)
                with contextlib.ExitStack() as second:
                    await asyncio.to_thread(second.enter_context, verifier("none:fp16"))
                    with contextlib.suppress(QspecError):
                        await running.text()
                    await until(lambda: bool(running.failures))
                    await asyncio.to_thread(second.close)
                (failure,) = running.failures
                assert isinstance(failure, InvalidInput)
                assert str(failure) == (
                    "verify_quantization: the verifier has none:fp16, and texts were begun as none:fp32; "
                    "give it that method by name")
    run(test)


def test_idle_worker_that_dies_is_replaced() -> None:
    async def test() -> None:
        async with started() as running:
            os.kill(running.pid("verifier"), signal.SIGKILL)
            os.kill(running.pid("drafter"), signal.SIGKILL)
            await until(lambda: running.pair.verifier_restarts == 1 and running.pair.drafter_restarts == 1)
            assert await running.text() == expected(20)
    run(test)


@pytest.mark.parametrize("role", ["verifier", "drafter"])
def test_worker_that_refuses_its_configuration_is_reported(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"QSPEC_FAKE_{role.upper()}", "refuse")

    async def test() -> None:
        async with prepared() as running:
            with pytest.raises(InvalidInput, match="model: refused by the test"):
                await asyncio.to_thread(running.stack.start)
    run(test)


def test_worker_that_crashes_at_the_start_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_DRAFTER", "crash")

    async def test() -> None:
        async with prepared() as running:
            with pytest.raises(QspecError, match="the drafter ended unexpectedly with exit code 7"):
                await asyncio.to_thread(running.stack.start)
            assert running.pair.drafter_restarts == 1
    run(test)


def test_stop_while_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "slow")

    async def test() -> None:
        async with prepared() as running:
            starting = asyncio.ensure_future(asyncio.to_thread(running.stack.start))
            await until(lambda: bool(running.told))
            pid = running.pid("verifier")
            await asyncio.to_thread(running.stack.stop)
            with pytest.raises(QspecError, match="shutting down"):
                await starting
            assert not alive(pid)
    run(test)


def test_verifier_that_cannot_be_replaced_ends_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.worker.MAX_RESTARTS", 1)

    async def test() -> None:
        async with started() as running:
            monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "crash")
            stream = running.router.submit(request(max_tokens=200))
            os.kill(running.pid("verifier"), signal.SIGKILL)
            await until(lambda: bool(running.failures))
            assert "the verifier failed 2 times" in str(running.failures[0])
            with pytest.raises(QspecError, match="shutting down"):
                async for _ in stream:
                    pass
    run(test)


def test_runtime_directory_is_private_and_removed(tmp_path: Path) -> None:
    with runtime_directory(tmp_path / "made") as (directory, made):
        assert made and stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "socket").touch()
    assert not directory.exists()
    tmp_path.chmod(0o700)
    with runtime_directory(tmp_path) as (directory, made):
        assert directory == tmp_path and not made
    assert tmp_path.exists()
    tmp_path.chmod(0o755)
    with pytest.raises(InvalidInput, match="open to other users"), runtime_directory(tmp_path):
        pass
