"""Several engines behind one router: who runs what, and what becomes of it when one is lost or taken away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from coordinator.choices import Choices
from coordinator.engine import Engine
from coordinator.generation import Piece
from coordinator.router import Router
from coordinator.stream import Stream
from coordinator.valid_request import ValidRequest
from qspec.errors import QspecError, Unavailable, WorkerLost
from qspec.interfaces import Sampling, VerifyAnswer, VerifyBatch
from qspec.speculation import SpeculationLoop
from tests.coordinator.stack_in_memory import NumberText, RecordingObserver, request
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text


class KillableVerifier(FakeVerifier):
    """Is gone once it was ``killed``."""

    killed = False

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        answer = super().verify(batch)
        if self.killed:  # it has done its work, and nobody hears of it
            raise WorkerLost("killed by the test")
        return answer


class Server:
    """A router and its engines."""

    def __init__(self, router: Router, engines: list[Engine], verifiers: list[KillableVerifier]) -> None:
        self.router, self.engines, self.verifiers = router, engines, verifiers

    def submit(self, wanted: ValidRequest) -> Stream:
        """A request of one choice."""
        stream = self.router.submit(wanted)
        assert not isinstance(stream, Choices)
        return stream

    async def text(self, prompt: Sequence[int], count: int = 40) -> str:
        """The text behind a prompt."""
        return await rest(self.submit(request(prompt=prompt, max_tokens=count, draft_length=3)))

    async def replace(self, index: int, delay_s: float = 0.0) -> None:
        """Give an engine a new pair of workers."""
        self.verifiers[index] = verifier = KillableVerifier(delay_s=delay_s)
        await asyncio.to_thread(self.engines[index].attach_verifier, verifier)
        await asyncio.to_thread(self.engines[index].attach_drafter, FakeDrafter(verifier))


async def rest(stream: Stream) -> str:
    """What a stream still has to say."""
    async with stream:
        return "".join([piece.text async for piece in stream])


def expected(prompt: Sequence[int], count: int = 40) -> str:
    """The text without any loss."""
    return "".join(f"{token}," for token in continue_text(list(prompt), count, Sampling(), 97))


@contextlib.asynccontextmanager
async def serving(*verifiers: KillableVerifier, max_waiting: int = 50) -> AsyncIterator[Server]:
    """A router with an engine for each verifier."""
    router = Router(eos_token_ids=frozenset(), text_source=NumberText, max_waiting=max_waiting)
    router.start(asyncio.get_running_loop())
    server = Server(router, [], list(verifiers))
    for verifier in verifiers:
        engine = Engine(SpeculationLoop(), home=router, observer=RecordingObserver())
        engine.start()
        server.engines.append(engine)
        await asyncio.to_thread(engine.attach_verifier, verifier)
        await asyncio.to_thread(engine.attach_drafter, FakeDrafter(verifier))
        about = verifier.describe()
        router.add(engine, slots=about.max_slots, blocks=about.num_blocks)
    try:
        yield server
    finally:
        for engine in server.engines:
            await asyncio.to_thread(engine.close)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def admitted(verifier: FakeVerifier) -> int:
    return sum(len(batch.admissions) for batch in verifier.batches[2:])  # the first two make sure of the slots


class PoisonedVerifier(KillableVerifier):
    """Dies of every batch that has the token 66."""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        tokens = [token for chunk in batch.prefill_chunks for token in chunk.token_ids]
        self.killed = self.killed or 66 in [*tokens, *(each.pending_token for each in batch.verifications)]
        return super().verify(batch)


PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (14,), (15, 16), (17, 18, 19)]


def test_requests_are_spread_and_all_of_them_end() -> None:
    async def test() -> None:
        first, second = KillableVerifier(delay_s=0.002, max_slots=2), KillableVerifier(delay_s=0.002, max_slots=2)
        async with serving(first, second) as server:
            texts = asyncio.gather(*(server.text(prompt) for prompt in PROMPTS))
            await until(lambda: [engine.running for engine in server.engines] == [2, 2])
            assert server.router.waiting == 2
            assert await texts == [expected(prompt) for prompt in PROMPTS]
            assert admitted(first) + admitted(second) == 6 and min(admitted(first), admitted(second)) >= 2
            await until(lambda: server.router.free_blocks == 128)
            assert server.router.active == server.router.running == server.router.waiting == 0
    run(test)


def test_a_lost_verifier_s_requests_go_on_at_another_pair() -> None:
    async def test() -> None:
        lost, other = KillableVerifier(delay_s=0.002), KillableVerifier(delay_s=0.002, max_slots=8)
        async with serving(lost, other) as server:
            streams = [server.submit(request(prompt=prompt, max_tokens=60, draft_length=3)) for prompt in PROMPTS]
            begun = [(await stream.__anext__()).text for stream in streams]
            assert server.engines[0].running > 0
            lost.killed = True
            texts = await asyncio.gather(*map(rest, streams))
            whole = [first + text for first, text in zip(begun, texts, strict=True)]
            assert whole == [expected(prompt, 60) for prompt in PROMPTS]
            moved = [stream for stream in streams if stream.generation.sequence.stats.recomputations]
            assert moved and server.engines[0].load is None
            assert await server.text([3, 2, 1]) == expected([3, 2, 1]), "nothing is sent where nobody is"
            await server.replace(0)
            assert await server.text([3, 2, 2]) == expected([3, 2, 2])
    run(test)


@pytest.mark.parametrize("poison", [(66, 1, 2), (1, 2, 66)])
@pytest.mark.parametrize("pairs", [1, 2])
def test_a_request_that_ends_verifiers_is_ended_and_others_go_on(pairs: int, poison: tuple[int, ...]) -> None:
    async def test() -> None:
        limits = {"max_slots": 8, "num_blocks": 400, "max_batch_rows": 200}
        async with serving(*(PoisonedVerifier(delay_s=0.002, **limits) for _ in range(pairs))) as server:
            lost = 0

            async def replace_lost() -> None:
                nonlocal lost
                while True:
                    for index, engine in enumerate(server.engines):
                        if not engine.verifier_attached:
                            lost += 1
                            server.verifiers[index] = verifier = PoisonedVerifier(delay_s=0.002, **limits)
                            await asyncio.to_thread(engine.attach_verifier, verifier)
                    await asyncio.sleep(0.002)

            replacing = asyncio.ensure_future(replace_lost())
            innocent = [prompt for prompt in PROMPTS if 66 not in (*prompt, *continue_text(
                list(prompt), 30, Sampling(), 97))]
            assert len(innocent) > 2
            early = [asyncio.ensure_future(server.text(prompt, 30)) for prompt in innocent[:1]]
            await until(lambda: server.router.running == 1)
            poisoned = server.submit(request(prompt=poison))
            late = [asyncio.ensure_future(server.text(prompt, 30)) for prompt in innocent[1:]]
            with pytest.raises(QspecError, match="3 verifiers were lost one after the other") as raised:
                await rest(poisoned)
            assert type(raised.value) is QspecError, "INTERNAL"
            assert await asyncio.gather(*early, *late) == [expected(prompt, 30) for prompt in innocent]
            await until(lambda: server.router.active == 0)
            assert lost == 3 and server.router.waiting == 0
            replacing.cancel()
    run(test)


def test_losses_between_which_a_text_goes_on_do_not_count() -> None:
    async def test() -> None:
        async with serving(KillableVerifier(delay_s=0.005)) as server:
            stream = server.submit(request(prompt=(5, 6), max_tokens=250, draft_length=0))
            text = ""
            for _ in range(5):
                text += (await stream.__anext__()).text
                made = len(stream.generation.sequence.tokens)
                server.verifiers[0].killed = True
                await until(lambda: server.router.waiting == 1)
                await server.replace(0, delay_s=0.005)
                await until(lambda made=made: len(stream.generation.sequence.tokens) > made + 1)
            assert text + await rest(stream) == expected((5, 6), 250)
    run(test)


def test_what_finds_no_room_elsewhere_waits_and_goes_first_and_in_its_order() -> None:
    async def test() -> None:
        lost, other = KillableVerifier(delay_s=0.002, max_slots=2), KillableVerifier(delay_s=0.002, max_slots=2)
        async with serving(lost, other) as server:
            ended: list[int] = []

            async def text(index: int) -> str:
                made = await server.text(PROMPTS[index])
                ended.append(index)
                return made

            texts = asyncio.gather(*(text(index) for index in range(6)))
            await until(lambda: server.router.running == 4)
            lost.killed = True
            await until(lambda: server.router.waiting == 4)
            assert await texts == [expected(prompt) for prompt in PROMPTS]
            assert set(ended[:4]) == {0, 1, 2, 3}, "those that had a place already end before the others"
    run(test)


def test_all_pairs_lost_pause_everything_until_one_is_replaced() -> None:
    async def test() -> None:
        verifiers = [KillableVerifier(delay_s=0.002), KillableVerifier(delay_s=0.002)]
        async with serving(*verifiers) as server:
            texts = asyncio.gather(*(server.text(prompt) for prompt in PROMPTS))
            await until(lambda: server.router.running == 6)
            for verifier in verifiers:
                verifier.killed = True
            await until(lambda: server.router.running == 0)
            assert server.router.waiting == 6 and not texts.done()
            late = asyncio.ensure_future(server.text([9, 9, 9]))
            await server.replace(1)
            assert await texts == [expected(prompt) for prompt in PROMPTS]
            assert await late == expected([9, 9, 9])
    run(test)


def test_a_pair_that_goes_moves_what_it_runs() -> None:
    async def test() -> None:
        going, other = KillableVerifier(delay_s=0.002), KillableVerifier(delay_s=0.002, max_slots=8)
        async with serving(going, other) as server:
            texts = asyncio.gather(*(server.text(prompt, 80) for prompt in PROMPTS))
            await until(lambda: server.engines[0].running > 0)
            server.router.close(server.engines[0])
            await asyncio.sleep(0.05)
            assert server.engines[0].running > 0, "closing alone moves nothing"
            await asyncio.to_thread(server.engines[0].evict)
            assert server.engines[0].running == server.engines[0].waiting == 0
            await asyncio.to_thread(server.engines[0].close)
            assert await texts == [expected(prompt, 80) for prompt in PROMPTS]
            assert await server.text([4, 4]) == expected([4, 4])
    run(test)


def test_cancelled_streams_are_dropped_wherever_they_are() -> None:
    async def test() -> None:
        verifiers = [KillableVerifier(delay_s=0.002, max_slots=1), KillableVerifier(delay_s=0.002, max_slots=1)]
        async with serving(*verifiers) as server:
            streams = [server.submit(request(prompt=prompt, max_tokens=200)) for prompt in PROMPTS[:4]]
            await until(lambda: server.router.running == 2)
            verifiers[0].killed = True
            await until(lambda: server.router.waiting == 3)  # one of them was running
            for stream in streams:
                stream.cancel()
            await until(lambda: server.router.active == server.router.running == server.router.waiting == 0)
            await server.replace(0)
            assert await server.text([1, 2]) == expected([1, 2])
    run(test)


def test_common_beginnings_meet_and_others_are_spread() -> None:
    async def test() -> None:
        first, second = (
            KillableVerifier(num_blocks=400, max_slots=8, max_model_len=1024, max_batch_rows=512) for _ in range(2))
        async with serving(first, second) as server:
            system = [(7 * i) % 97 for i in range(600)]
            for question in range(6):
                await server.text([*system, question], 4)
            assert sorted([admitted(first), admitted(second)]) == [0, 6]
            first.delay_s = second.delay_s = 0.01
            before = admitted(first), admitted(second)
            await asyncio.gather(*(server.text([question, 1], 30) for question in range(6)))
            assert (admitted(first) - before[0], admitted(second) - before[1]) == (3, 3)
    run(test)


def test_more_requests_are_taken_with_more_pairs() -> None:
    async def test() -> None:
        verifiers = [KillableVerifier(delay_s=0.01, max_slots=2), KillableVerifier(delay_s=0.01, max_slots=2)]
        async with serving(*verifiers, max_waiting=1) as server:
            streams = [server.submit(request(prompt=prompt, max_tokens=200)) for prompt in PROMPTS[:5]]
            with pytest.raises(Exception, match="5 requests are running or waiting already"):
                server.submit(request())
            for stream in streams:
                stream.cancel()
    run(test)


def test_the_last_engine_s_end_ends_what_waits() -> None:
    async def test() -> None:
        async with serving(KillableVerifier(delay_s=0.01, max_slots=1), KillableVerifier(max_slots=1)) as server:
            streams = [server.submit(request(prompt=prompt, max_tokens=200)) for prompt in PROMPTS[:4]]
            pieces: list[Piece] = [await streams[0].__anext__()]
            for engine in server.engines:
                await asyncio.to_thread(engine.close)
            for stream in streams:
                with pytest.raises(Unavailable, match="shutting down"):
                    pieces += [piece async for piece in stream]
            with pytest.raises(Unavailable, match="shutting down"):
                server.submit(request())
    run(test)


def test_a_stream_that_is_cancelled_without_a_place_or_on_its_way_is_forgotten() -> None:
    async def test() -> None:
        async with serving(KillableVerifier(delay_s=0.002)) as server:
            stream = server.submit(request(max_tokens=200))
            await stream.__anext__()
            server.verifiers[0].killed = True
            await until(lambda: server.router.waiting == 1)
            stream.cancel()
            assert server.router.waiting == 0
            await server.replace(0)
            server.router.take_back(server.engines[0], [stream], cache_lost=False)  # it was being handed over
            assert await server.text([1, 2]) == expected([1, 2])
            assert server.router.waiting == 0 and admitted(server.verifiers[0]) == 1
    run(test)
