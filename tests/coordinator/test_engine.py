"""The engine over fake workers: text, stop strings, cancellation, and the loss of either worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import replace

import pytest

from coordinator.engine import Engine
from coordinator.generation import Piece
from coordinator.messages import piece_messages
from coordinator.router import Router
from coordinator.stream import Stream
from coordinator.valid_request import ValidRequest
from qspec.errors import DeadlineExceeded, InvalidInput, QspecError, QueueFull, Unavailable, WorkerLost
from qspec.interfaces import DraftAnswer, DraftBatch, Sampling, VerifyAnswer, VerifyBatch
from qspec.rpc.logprobs_codec import logprobs_from_pb
from qspec.sequence import FinishReason
from tests.coordinator.stack_in_memory import request, running_engine
from tests.fakes import FakeDrafter, FakeVerifier, fake_logprobs
from tests.overlapping_fakes import Awaiting, Place
from tests.toy_model import continue_text


class MortalVerifier(FakeVerifier):
    """Is gone after ``rounds`` batches."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._rounds = rounds

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        if len(self.batches) >= self._rounds:
            raise WorkerLost("killed by the test")
        return super().verify(batch)


class MortalDrafter(FakeDrafter):
    """Is gone after ``rounds`` batches."""

    rounds = 2

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        if len(self.batches) >= self.rounds:
            raise WorkerLost("killed by the test")
        return super().draft(batch)


class WrongVerifier(FakeVerifier):
    """Fails in a way that no worker may."""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        if batch.verifications:
            raise ZeroDivisionError("planted by the test")
        return super().verify(batch)


async def collect(engine: Router, wanted: ValidRequest) -> list[Piece]:
    async with engine.submit(wanted) as stream:
        return [piece async for piece in stream]


async def text_of(engine: Router, wanted: ValidRequest) -> str:
    return "".join(piece.text for piece in await collect(engine, wanted))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5) if hasattr(asyncio, "timeout") else _no_timeout():
        while not condition():
            await asyncio.sleep(0.005)


class _no_timeout:  # noqa: N801  (Python 3.10 has no asyncio.timeout; the test's own limit holds)
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *exception: object) -> None: ...


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)  # type: ignore[arg-type]

    asyncio.run(bounded())


def test_pieces_add_up_and_the_last_one_carries_the_ending() -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, FakeDrafter(verifier)) as (engine, _):
            pieces = await collect(engine, request(draft_length=4))
            tokens = [token for piece in pieces for token in piece.token_ids]
            assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in tokens)
            assert [piece.ending is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
            ending = pieces[-1].ending
            assert ending is not None and ending.reason is FinishReason.LENGTH
            assert (ending.usage.prompt_tokens, ending.usage.completion_tokens) == (3, 20) == (3, len(tokens))
            assert 0 < ending.usage.time_to_first_token_s < ending.usage.total_s
            assert ending.stats.drafted > ending.stats.accepted > 0
            assert engine.active == 0
    run(test)


@pytest.mark.parametrize("draft_length", [0, 1, 4, 8])
def test_stop_string_ends_text_and_tokens_at_the_same_place_for_every_draft_length(draft_length: int) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, FakeDrafter(verifier, wrong_every=0)) as (engine, _):
            tokens = [t for piece in await collect(engine, request(draft_length=0)) for t in piece.token_ids]
            stop = f"{tokens[9]},{tokens[10]},"
            pieces = await collect(engine, request(draft_length=draft_length, stop=(stop,)))
            end = next(i for i in range(1, 20) if tokens[i - 1 : i + 1] == tokens[9:11])
            assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in tokens[: end - 1])
            assert [t for piece in pieces for t in piece.token_ids] == tokens[: end + 1]
            ending = pieces[-1].ending
            assert ending is not None and (ending.reason, ending.matched_stop) == (FinishReason.STOP_STRING, stop)
            assert ending.usage.completion_tokens == end + 1
            await until(lambda: engine.running == 0)
    run(test)


def test_end_of_sequence_has_no_text() -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, None) as (engine, _):
            tokens = [t for piece in await collect(engine, request()) for t in piece.token_ids]
        end = tokens[5]
        verifier = FakeVerifier()
        async with running_engine(verifier, None, eos_token_ids=frozenset({end})) as (engine, _):
            pieces = await collect(engine, request())
            made = [t for piece in pieces for t in piece.token_ids]
            assert made == tokens[: tokens.index(end) + 1]
            assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in made[:-1])
            assert pieces[-1].ending is not None
            assert pieces[-1].ending.reason is FinishReason.END_OF_SEQUENCE
    run(test)


@pytest.mark.parametrize("draft_length", [0, 3, 8])
def test_a_stop_token_ends_the_text_and_is_told(draft_length: int) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, FakeDrafter(verifier, wrong_every=0)) as (engine, _):
            tokens = [t for piece in await collect(engine, request()) for t in piece.token_ids]
            pieces = await collect(engine, request(stop_token_ids=(tokens[8], 96), draft_length=draft_length))
            end = tokens.index(tokens[8])
            assert [t for piece in pieces for t in piece.token_ids] == tokens[: end + 1]
            assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in tokens[:end])
            ending = pieces[-1].ending
            assert ending is not None
            assert (ending.reason, ending.matched_token) == (FinishReason.STOP_TOKEN, tokens[8])
            assert ending.matched_stop is None
    run(test)


def test_end_of_sequence_may_be_ignored_and_may_be_a_stop_token() -> None:
    async def test() -> None:
        async with running_engine(FakeVerifier(), None) as (engine, _):
            tokens = [t for piece in await collect(engine, request()) for t in piece.token_ids]
        eos = frozenset({tokens[5]})
        async with running_engine(FakeVerifier(), None, eos_token_ids=eos) as (engine, _):
            ignoring = await collect(engine, request(ignore_eos=True))
            assert [t for piece in ignoring for t in piece.token_ids] == tokens
            assert "".join(piece.text for piece in ignoring) == "".join(f"{token}," for token in tokens)
            for ignore_eos in (False, True):
                stopped = await collect(engine, request(ignore_eos=ignore_eos, stop_token_ids=(tokens[5],)))
                ending = stopped[-1].ending
                assert ending is not None and ending.reason is FinishReason.STOP_TOKEN
    run(test)


@pytest.mark.parametrize("draft_length", [0, 3, 8])
def test_stop_strings_wait_for_min_tokens(draft_length: int) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, FakeDrafter(verifier, wrong_every=0)) as (engine, _):
            tokens = [t for piece in await collect(engine, request()) for t in piece.token_ids]

            async def ended(stop: str, min_tokens: int) -> int:
                sampling = Sampling(min_tokens=min_tokens)
                pieces = await collect(engine, request(stop=(stop,), draft_length=draft_length, sampling=sampling))
                made = [t for piece in pieces for t in piece.token_ids]
                assert made == tokens[: len(made)]
                ending = pieces[-1].ending
                matched = ending is not None and ending.reason is FinishReason.STOP_STRING
                assert "".join(piece.text for piece in pieces) == "".join(
                    f"{t}," for t in made[: len(made) - stop.count(",") * matched])
                return len(made)

            two = f"{tokens[8]},{tokens[9]},"  # at the 10th token
            assert await ended(two, 0) == await ended(two, 8) == 10
            assert await ended(two, 9) == 20, "it would begin within the first nine"
            assert await ended(",", 20) == 20
            assert await ended(f"{tokens[8]},", 8) == 9
    run(test)


def test_cancelled_stream_gives_its_slot_back_while_others_go_on() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.005, max_slots=2)
        async with running_engine(verifier, None) as (engine, _):
            other = asyncio.ensure_future(text_of(engine, request(max_tokens=60)))
            stream = engine.submit(request(prompt=[9, 8], max_tokens=200))
            await stream.__anext__()
            assert engine.running == 2
            stream.cancel()
            seen = len(verifier.batches)
            await until(lambda: engine.running == 1)
            assert len(verifier.batches) <= seen + 2
            stream.cancel()  # again: harmless
            assert (await other).count(",") == 60
            await until(lambda: any(batch.releases for batch in verifier.batches))
    run(test)


def test_cancelled_before_it_got_a_slot() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.005, max_slots=1)
        async with running_engine(verifier, None) as (engine, _):
            first = asyncio.ensure_future(text_of(engine, request(max_tokens=40)))
            await asyncio.sleep(0.02)
            waiting = engine.submit(request())
            await until(lambda: engine.waiting == 1)
            waiting.cancel()
            await until(lambda: engine.waiting == 0)
            assert (await first).count(",") == 40
    run(test)


def test_full_queue_is_refused_and_has_room_again_later() -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_slots=1, delay_s=0.005)
        async with running_engine(verifier, None, max_active=2) as (engine, _):
            streams = [engine.submit(request()), engine.submit(request())]
            with pytest.raises(QueueFull):
                engine.submit(request())
            for stream in streams:
                assert len([piece async for piece in stream]) > 0
            assert (await text_of(engine, request())).count(",") == 20
    run(test)


def test_a_text_that_has_ended_has_no_place_before_anybody_was_told() -> None:
    async def test() -> None:
        async with running_engine(FakeVerifier(max_slots=1), None, max_active=1) as (engine, _):
            ended = engine.submit(request(max_tokens=3))
            while not ended.complete:  # type: ignore[union-attr]  # of one choice
                time.sleep(0.001)  # noqa: ASYNC251  so that the event loop hears nothing of it
            assert (await text_of(engine, request())).count(",") == 20
    run(test)


def test_request_id_is_one_request_s_at_a_time() -> None:
    async def test() -> None:
        async with running_engine(FakeVerifier(delay_s=0.005), None) as (engine, _):
            named = replace(request(), request_id="mine")
            stream = engine.submit(named, client="a")
            with pytest.raises(InvalidInput, match="request_id: mine is in use"):
                engine.submit(named, client="a")
            other = engine.submit(named, client="b")
            stream.cancel()
            again = engine.submit(named, client="a")
            for one in (other, again):
                assert sum([len(piece.token_ids) async for piece in one]) == 20
    run(test)


def test_lost_drafter_changes_no_token_and_is_reported() -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, None) as (engine, _):
            expected = await text_of(engine, request(max_tokens=40))
        verifier = FakeVerifier()
        drafter = MortalDrafter(verifier)
        async with running_engine(verifier, drafter) as (engine, observer):
            pieces = await collect(engine, request(max_tokens=40, draft_length=4))
            assert "".join(piece.text for piece in pieces) == expected
            ending = pieces[-1].ending
            assert ending is not None and ending.stats.rounds_without_drafter > 0
            assert observer.lost_drafters == [drafter] and not observer.lost_verifiers
            await asyncio.to_thread(engine.attach_drafter, FakeDrafter(verifier))
            again = (await collect(engine, request(max_tokens=40, draft_length=4)))[-1].ending
            assert again is not None and again.stats.accepted > 0 and again.stats.rounds_without_drafter == 0
    run(test)


def test_streams_pause_for_a_lost_verifier_and_go_on_with_the_next() -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, None) as (engine, _):
            expected = [await text_of(engine, request(prompt=[p, 2], max_tokens=30)) for p in (5, 6)]
        mortal = MortalVerifier(rounds=8)
        async with running_engine(mortal, FakeDrafter(mortal)) as (engine, observer):
            texts = asyncio.gather(*(text_of(engine, request(prompt=[p, 2], max_tokens=30)) for p in (5, 6)))
            await until(lambda: bool(observer.lost_verifiers))
            assert observer.lost_verifiers == [mortal] and not texts.done()
            late = engine.submit(request(prompt=[5, 2], max_tokens=30))  # accepted, and waits
            replacement = FakeVerifier()
            await asyncio.to_thread(engine.attach_verifier, replacement)
            await asyncio.to_thread(engine.attach_drafter, FakeDrafter(replacement))
            assert await texts == expected
            assert "".join([piece.text async for piece in late]) == expected[0]
    run(test)


def test_cancelled_while_the_verifier_is_away() -> None:
    async def test() -> None:
        mortal = MortalVerifier(rounds=2)
        async with running_engine(mortal, None) as (engine, observer):
            stream = engine.submit(request())
            await until(lambda: bool(observer.lost_verifiers))
            stream.cancel()
            await until(lambda: engine.running == 0)
    run(test)


def test_failing_loop_fails_its_streams_and_says_so() -> None:
    async def test() -> None:
        async with running_engine(WrongVerifier(), None) as (engine, observer):
            with pytest.raises(Exception, match="see the server's log"):
                await text_of(engine, request())
            await until(lambda: bool(observer.failures))
            assert isinstance(observer.failures[0], ZeroDivisionError)
            with pytest.raises(Exception, match="stopped"):
                engine.submit(request())
    run(test)


def test_closing_ends_open_streams() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01)
        async with running_engine(verifier, None) as (engine, _):
            stream = engine.submit(request(max_tokens=200))
            await stream.__anext__()
            await asyncio.to_thread(engine.engine.close)
            with pytest.raises(Unavailable, match="shutting down"):
                async for _ in stream:
                    pass
    run(test)


def test_calibration_measures_costs() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.002)
        async with running_engine(verifier, FakeDrafter(verifier)) as (engine, _):
            told: list[float | None] = []
            await asyncio.to_thread(engine.engine.calibrate, lambda text, fraction: told.append(fraction))
            assert told and len(engine.engine.costs.verify_s) == 9
            assert min(engine.engine.costs.verify_s) >= 0.001 and engine.engine.costs.draft_step_s > 0
    run(test)


def test_request_that_comes_with_the_end_is_told_or_refused() -> None:
    async def test() -> None:
        for _ in range(30):
            async with running_engine(FakeVerifier(), None) as (engine, _observer):
                closing = asyncio.ensure_future(asyncio.to_thread(engine.engine.close))
                while not closing.done():
                    await asyncio.sleep(0)
                    with contextlib.suppress(QspecError):
                        async with engine.submit(request(max_tokens=1)) as stream:
                            assert [piece async for piece in stream]
                await closing
    run(test)


@pytest.mark.parametrize("draft_length", [0, 4])
def test_logprobs_go_with_their_tokens(draft_length: int) -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_batch_rows=16)
        async with running_engine(verifier, FakeDrafter(verifier)) as (engine, _):
            prompt = range(1, 31)
            sampling = Sampling(logprobs=2, prompt_logprobs=0)
            pieces = await collect(engine, request(prompt=prompt, draft_length=draft_length, sampling=sampling))
            assert pieces[0].prompt_logprobs == fake_logprobs(list(prompt)[1:], 0)
            assert all(piece.prompt_logprobs == () for piece in pieces[1:])
            assert all(piece.logprobs == fake_logprobs(piece.token_ids, 2) for piece in pieces)
            tokens = [token for piece in pieces for token in piece.token_ids]
            stopped = await collect(engine, request(
                prompt=prompt, draft_length=draft_length, sampling=sampling, stop=(f"{tokens[7]},",)))
            assert all(piece.logprobs == fake_logprobs(piece.token_ids, 2) for piece in stopped)
    run(test)


def test_a_long_prompts_logprobs_are_split_into_messages() -> None:
    for count in (0, 1, 1024, 1025, 3000):
        told = fake_logprobs([token % 97 for token in range(count)], 1)
        piece = Piece(text="a", token_ids=(5,), prompt_logprobs=told, logprobs=fake_logprobs([5], 0))
        messages = list(piece_messages(piece, "mine"))
        assert [message.request_id for message in messages] == ["mine"] + [""] * (len(messages) - 1)
        assert [message.text for message in messages] == [""] * (len(messages) - 1) + ["a"]
        assert all(len(message.prompt_logprobs) <= 1024 for message in messages)
        assert logprobs_from_pb(each for message in messages for each in message.prompt_logprobs) == told
        assert logprobs_from_pb(messages[-1].logprobs) == piece.logprobs


def test_choices_are_told_apart_and_each_is_what_it_would_be_alone() -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_slots=2)  # fewer than choices: they take turns
        async with running_engine(verifier, FakeDrafter(verifier)) as (engine, _):
            sampling = Sampling(temperature=1.0, seed=8, prompt_logprobs=0)
            pieces = await collect(engine, replace(request(sampling=sampling), choices=5))
            texts: dict[int, list[int]] = {}
            for piece in pieces:
                assert piece.ending is None or piece.ending.usage.completion_tokens == 20
                assert bool(piece.prompt_logprobs) == (piece.choice == 0 and piece.choice not in texts)
                texts.setdefault(piece.choice, []).extend(piece.token_ids)
            assert sum(piece.ending is not None for piece in pieces) == 5
            for choice in range(5):
                expected = continue_text([1, 2, 3], 20, replace(sampling, choice=choice), 97)
                assert texts[choice] == expected
            assert len({tuple(text) for text in texts.values()}) == 5
            assert engine.active == 0
            greedy = await collect(engine, replace(request(), choices=2))
            each = ["".join(piece.text for piece in greedy if piece.choice == choice) for choice in (0, 1)]
            assert each[0] == each[1] != ""
    run(test)


def test_choices_take_places_together_and_leave_together() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.005)
        async with running_engine(verifier, None, max_active=4) as (engine, _):
            with pytest.raises(InvalidInput, match="n: this server has room for 4 texts at once, got 5"):
                engine.submit(replace(request(), choices=5))
            three = engine.submit(replace(request(max_tokens=200), choices=3, request_id="mine"))
            assert engine.active == 3
            with pytest.raises(QueueFull):
                engine.submit(replace(request(), choices=2), client="other")
            assert engine.active == 3
            with pytest.raises(InvalidInput, match="request_id: mine is in use"):
                engine.submit(replace(request(), request_id="mine"))
            with pytest.raises(InvalidInput, match="request_id: mine is in use"):
                engine.admission.check("", "mine")
            assert await text_of(engine, request())
            await three.__anext__()
            three.cancel()
            assert engine.active == 0
            engine.admission.check("", "mine", 4)
            await until(lambda: engine.running == 0)
    run(test)


def test_an_error_of_one_choice_ends_all() -> None:
    async def test() -> None:
        async with running_engine(FakeVerifier(delay_s=0.005), None) as (engine, _):
            choices = engine.submit(replace(request(max_tokens=200), choices=3))
            with pytest.raises(DeadlineExceeded):
                async with choices:
                    async for piece in choices:
                        assert piece.ending is None
                        engine.admission.streams[-1].fail(DeadlineExceeded("planted by the test"))
            assert engine.active == 0
            await until(lambda: engine.running == 0)
    run(test)


@pytest.mark.parametrize("draft_length", [0, 4])
def test_an_echo_goes_ahead_and_nothing_is_looked_for_in_it(draft_length: int) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with running_engine(verifier, FakeDrafter(verifier)) as (engine, _):
            tokens = [t for piece in await collect(engine, request()) for t in piece.token_ids]
            wanted = replace(request(draft_length=draft_length, stop=("2,3",)), echo=True, choices=2)
            for choice in (0, 1):
                pieces = [piece for piece in await collect(engine, wanted) if piece.choice == choice]
                assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in [1, 2, 3, *tokens])
                assert [piece.prompt_token_ids for piece in pieces] == [(1, 2, 3)] + [()] * (len(pieces) - 1)
                ending = pieces[-1].ending
                assert ending is not None and ending.usage.completion_tokens == len(tokens)
    run(test)


def test_texts_go_on_once_the_next_question_is_asked() -> None:
    """Where rounds are asked for ahead the event loop, which sends texts, would be at work while workers wait."""
    async def test() -> None:
        verifier = Awaiting(Place(), asked_ahead=True)
        asked, ahead = 0, []

        def begin_verify(batch: VerifyBatch) -> Future[VerifyAnswer]:
            nonlocal asked
            asked += 1
            return Awaiting.begin_verify(verifier, batch)

        verifier.begin_verify = begin_verify  # type: ignore[method-assign]
        async with running_engine(verifier, None) as (router, _):
            told, committed = 0, router.committed

            def count(engine: Engine, streams: Collection[Stream], made: Mapping[str, int]) -> None:
                nonlocal told
                if made:
                    told += 1
                    ahead.append(asked - told)
                committed(engine, streams, made)

            router.committed = count  # type: ignore[method-assign]
            asked = 0
            assert sum(len(piece.token_ids) for piece in await collect(router, request(max_tokens=12))) == 12
        assert told == 12, ahead
        # The first rounds are asked for one by one; of the last two nobody asks what comes next.
        assert ahead[2:9] == [2] * 7 and ahead[-1] == 0, ahead
    run(test)
