"""A router, its queue and two engines, stepped by hand: whatever happens, every text is what it is alone.

Requests of three clients come with and without deadlines, are cancelled and are read slowly, while verifiers and
drafters are lost and replaced, and pairs taken away. Nothing runs by itself: the event loop's time is the test's, an
engine has no thread and takes a turn when it is told to, and the verifiers are those whose KV blocks are on paper.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.choices import Choices
from coordinator.engine import Engine
from coordinator.router import Router
from coordinator.stream import Stream
from coordinator.valid_request import ValidRequest
from qspec.errors import DeadlineExceeded, QspecError, QueueFull, SlowReader, Unavailable, WorkerLost
from qspec.interfaces import Sampling, VerifyAnswer, VerifyBatch
from qspec.speculation import SpeculationLoop
from tests.coordinator.stack_in_memory import NumberText, RecordingObserver
from tests.engine.paper_workers import VOCAB_SIZE, PaperDrafter, PaperVerifier
from tests.toy_model import continue_text

BEGINNINGS = tuple(tuple((start * 7 + 3 * index) % VOCAB_SIZE for index in range(24)) for start in range(2))
SEEDED = Sampling(temperature=1.0, seed=5)
MOST_WAITING = 5
BUFFERED = 10
MOST_TURNS = 2000
SLOTS = 3
ROUND_S = 0.2
T = TypeVar("T")
REQUESTS = st.fixed_dictionaries({
    "beginning": st.sampled_from(BEGINNINGS), "shared": st.integers(1, 24),
    "own": st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6), "priority": st.integers(0, 1),
    "max_tokens": st.integers(1, 18), "sampling": st.sampled_from([Sampling(), SEEDED]),
    "draft_length": st.sampled_from([None, 0, 3]), "choices": st.sampled_from([1, 1, 1, 2]),
    "cache_salt": st.sampled_from(["", "", "s"]), "lasts_s": st.sampled_from([None, None, None, 2.0, 5.0]),
    "attentive": st.sampled_from([True, True, True, True, False])})


class TestTime(asyncio.SelectorEventLoop):
    """An event loop whose time is the test's."""

    __test__ = False
    now = 0.0

    def time(self) -> float:
        """See ``AbstractEventLoop``."""
        return self.now

    def run(self, call: Callable[[], T]) -> T:
        """Have something called on the loop, with all that is ready or due before and behind it."""
        result: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result.set_result(call())
            except BaseException as error:  # noqa: BLE001  raised in the test
                result.set_exception(error)

        self.call_soon(run)
        for _ in range(3):  # what is ready may make something else ready
            self.call_soon(self.stop)
            self.run_forever()
        return result.result()


class MortalVerifier(PaperVerifier):
    """Is gone when it is told to be, before or behind its work."""

    dying = ""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        if self.dying == "before":
            raise WorkerLost("killed by the test")
        answer = super().verify(batch)
        if self.dying:
            raise WorkerLost("killed by the test")
        return answer


class SteppedEngine(Engine):
    """An engine without a thread, that notes whom it was given."""

    def __init__(self, router: Router, clock: Callable[[], float], given: list[Stream], epochs: itertools.count[int]):
        self.loop = SpeculationLoop(clock)
        super().__init__(self.loop, home=router, observer=RecordingObserver())
        self._given, self._epochs = given, epochs
        self.renew()

    def _call(self, command: Callable[[], T]) -> T:
        return command()

    def renew(self) -> None:
        """Another pair of workers."""
        self.verifier = MortalVerifier(max_slots=SLOTS, num_blocks=12, epoch=next(self._epochs))
        self.attach_verifier(self.verifier)
        self.renew_drafter()
        self._publish()

    def renew_drafter(self) -> None:
        """Another drafter."""
        self.drafter = PaperDrafter(self.verifier, self.loop.committed_tokens)
        self.attach_drafter(self.drafter)

    def turn(self) -> None:
        """Take a turn."""
        self._turn(wait=False)

    def place(self, stream: Stream, names: Sequence[bytes] = ()) -> bool:
        """See ``Engine``."""
        self._given.append(stream)
        placed = super().place(stream, names)
        if not placed:
            self._given.pop()
        return placed

    def end(self) -> None:
        """What the end of the thread does."""
        self._stop()
        self._end(Unavailable("closed by the test", 1.0))

    @property
    def at_rest(self) -> bool:
        """Whether nothing runs here, and nothing has to be given back."""
        return not self.loop.has_work and not self._seats.placed


@dataclass(eq=False)
class Asked:
    """A text that was asked for, and what came of it."""

    stream: Stream
    number: int
    deadline: float | None
    attentive: bool
    """Its reader takes whatever comes at once."""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    error: QspecError | None = None
    cancelled: bool = False

    def read(self) -> None:
        """Take what there is."""
        try:
            while not self.stream.read and (piece := self.stream.poll()) is not None:
                self.tokens += piece.token_ids
                self.text += piece.text
        except QspecError as error:
            self.error = error

    def check(self, *, whole: bool = False) -> None:
        """Whether it is the beginning of what it is alone, or all of it."""
        sequence = self.stream.generation.sequence
        alone = continue_text(sequence.prompt, sequence.max_tokens, sequence.sampling, VOCAB_SIZE)
        assert self.tokens == alone[: len(self.tokens)], "lost, repeated or reordered"
        assert self.text == "".join(f"{token}," for token in self.tokens)
        if whole:
            assert self.tokens == alone


class Routing(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.events = TestTime()
        self.router = Router(
            eos_token_ids=frozenset(), text_source=NumberText, max_waiting=MOST_WAITING, max_buffered_tokens=BUFFERED,
            unread_s=2.0)
        self.router.start(self.events)
        self.asked: list[Asked] = []
        self.given: list[Stream] = []
        self.epochs = itertools.count(1)
        self.engines: list[SteppedEngine] = []
        self.lost = 0  # verifiers

    @initialize()
    def two_pairs(self) -> None:
        for _ in range(2):
            self.add_pair()

    def add_pair(self) -> None:
        engine = SteppedEngine(self.router, self.events.time, self.given, self.epochs)
        self.engines.append(engine)
        about = engine.verifier.describe()
        self.router.add(engine, slots=about.max_slots, blocks=about.num_blocks)

    @rule(client=st.sampled_from("abc"), requests=st.lists(REQUESTS, min_size=1, max_size=5))
    def come(self, client: str, requests: list[dict[str, Any]]) -> None:
        for request in requests:
            self.ask(client, **request)

    def ask(
        self, client: str, *, lasts_s: float | None, attentive: bool, beginning: tuple[int, ...], shared: int,
        own: list[int], **fields: Any,
    ) -> None:
        """One request."""
        valid = ValidRequest(prompt=(*beginning[:shared], *own), stop=(), **fields)
        deadline = None if lasts_s is None else self.events.now + lasts_s

        def submit() -> list[Stream]:
            try:
                made = self.router.submit(valid, client=client, deadline=deadline)
            except QueueFull:
                assert self.router.active + valid.choices > MOST_WAITING + 2 * SLOTS
                return []
            return made._streams if isinstance(made, Choices) else [made]

        for stream in self.events.run(submit):
            self.asked.append(Asked(stream, len(self.asked), deadline, attentive))

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        asked = self.asked[which % len(self.asked)]
        asked.cancelled = asked.cancelled or not asked.stream.complete
        self.events.run(asked.stream.cancel)

    @precondition(lambda self: self.router.active)
    @rule(pairs=st.sampled_from([(0,), (1,), (0, 1), (0, 1)]), turns=st.integers(1, 6))
    def turn(self, pairs: tuple[int, ...], turns: int) -> None:
        for _ in range(turns):
            for pair in pairs:
                self.engines[pair].turn()
            self.read()

    @precondition(lambda self: self.router.active)
    @rule()
    def read_all(self) -> None:
        self.events.now += 4.0
        for asked in self.asked:
            asked.read()

    @precondition(lambda self: self.router.active)
    @rule(pair=st.integers(0, 1), what=st.sampled_from(["drafter", "before", "behind"]))
    def lose_a_worker(self, pair: int, what: str) -> None:
        engine = self.engines[pair]
        self.lost += what != "drafter"
        engine.turn()
        if what == "drafter":
            engine.drafter.dying = True
        else:
            engine.verifier.dying = what
        engine.turn()
        self.read()

    @precondition(lambda self: not all(engine.loop.drafter_attached for engine in self.engines))
    @rule()
    def renew(self) -> None:
        for engine in self.engines:
            if not engine.verifier_attached:
                engine.renew()
            elif not engine.loop.drafter_attached:
                engine.renew_drafter()

    @precondition(lambda self: self.router.active)
    @rule(pair=st.integers(0, 1))
    def take_away(self, pair: int) -> None:
        engine = self.engines.pop(pair)
        self.router.close(engine)
        engine.evict()
        engine.end()
        self.add_pair()

    def read(self) -> None:
        """Let the event loop run, after the time of a round, and attentive readers read."""
        self.events.now += ROUND_S
        self.events.run(lambda: None)
        for asked in self.asked:
            if asked.attentive:
                asked.read()

    @invariant()
    def every_text_is_the_beginning_of_what_it_is_alone(self) -> None:
        for asked in self.asked:
            asked.check()

    @invariant()
    def every_block_is_counted(self) -> None:
        for engine in self.engines:
            engine.verifier.check_books()

    @invariant()
    def whoever_came_first_is_served_first(self) -> None:
        numbers = {asked.stream: asked.number for asked in self.asked}
        first = [stream for stream in dict.fromkeys(self.given) if stream in numbers]
        lines: dict[tuple[str, int], list[int]] = {}
        for stream in first:
            lines.setdefault((stream.client, stream.priority), []).append(numbers[stream])
        assert all(line == sorted(line) for line in lines.values())

    @invariant()
    def no_more_is_active_than_may_be(self) -> None:
        assert self.router.active <= MOST_WAITING + 2 * SLOTS
        assert self.router.active == sum(
            not asked.stream.complete and not asked.cancelled for asked in self.asked)

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.events.close()

    def finish(self) -> None:
        """Whatever is left comes to its end, and nothing stays behind."""
        for _ in range(MOST_TURNS):
            for engine in self.engines:
                engine.turn()
                if not engine.verifier_attached:
                    engine.renew()
            self.read()
            if not self.router.active and all(engine.at_rest for engine in self.engines):
                break
        assert self.router.active == self.router.waiting == self.router.running == 0, "the texts do not come to an end"
        assert self.router._intake is not None and not self.router._intake._timers
        for engine in self.engines:
            assert engine.verifier.slots.free_blocks == engine.verifier.num_blocks
            assert engine.load is not None
        for asked in self.asked:
            asked.read()
            ended = asked.stream.error or asked.error
            if asked.cancelled:
                continue
            asked.check(whole=ended is None)
            if not isinstance(ended, (DeadlineExceeded, SlowReader, QueueFull)):
                assert ended is None or (type(ended) is QspecError and self.lost > 2), ended  # one that ends verifiers
            if isinstance(ended, DeadlineExceeded):
                assert asked.deadline is not None and asked.deadline <= self.events.now
            if isinstance(ended, SlowReader):
                assert not asked.attentive


TestRouting = Routing.TestCase
TestRouting.settings = settings(  # to shrink what fails would take minutes
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate))
