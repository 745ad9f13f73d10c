"""An engine over the fake workers, and an observer that writes down what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.engine import Engine
from coordinator.generation import TextSource
from coordinator.router import Router
from coordinator.telemetry import Telemetry
from coordinator.valid_request import ValidRequest
from qspec.errors import QspecError
from qspec.interfaces import Drafter, Sampling, Verifier
from qspec.speculation import SpeculationLoop
from tests.fakes import FakeDrafter, FakeVerifier


class NumberText:
    """A detokeniser that writes token 7 as ``7,``."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The tokens' text."""
        return "".join(f"{token}," for token in token_ids)

    def flush(self) -> str:
        """Nothing is ever held back."""
        return ""


@dataclass
class RecordingObserver:
    """Keeps what the engine says."""

    lost_verifiers: list[Verifier] = field(default_factory=list)
    lost_drafters: list[Drafter] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def verifier_lost(self, verifier: Verifier, error: QspecError) -> None:
        """See ``EngineObserver``."""
        self.lost_verifiers.append(verifier)

    def drafter_lost(self, drafter: Drafter, error: QspecError) -> None:
        """See ``EngineObserver``."""
        self.lost_drafters.append(drafter)

    def engine_failed(self, error: BaseException) -> None:
        """See ``EngineObserver``."""
        self.failures.append(error)


def request(
    *, prompt: Sequence[int] = (1, 2, 3), max_tokens: int = 20, stop: tuple[str, ...] = (),
    draft_length: int | None = None, sampling: Sampling = Sampling(), stop_token_ids: tuple[int, ...] = (),
    ignore_eos: bool = False,
) -> ValidRequest:
    """A greedy request, unless it says otherwise."""
    return ValidRequest(
        prompt=tuple(prompt), max_tokens=max_tokens, sampling=sampling, stop=stop, draft_length=draft_length,
        stop_token_ids=stop_token_ids, ignore_eos=ignore_eos)


class OnePair(Router):
    """A router with one engine, whose own questions it answers, too."""

    def __init__(self, observer: RecordingObserver, **options: Any) -> None:
        super().__init__(max_waiting=0, **options)
        self.engine = Engine(SpeculationLoop(), home=self, observer=observer)
        self.attach_verifier, self.attach_drafter = self.engine.attach_verifier, self.engine.attach_drafter


@contextlib.asynccontextmanager
async def running_engine(
    verifier: FakeVerifier, drafter: FakeDrafter | None, *, max_active: int = 8,
    eos_token_ids: frozenset[int] = frozenset(), max_buffered_tokens: int = 1024,
    text_source: Callable[[], TextSource] = NumberText, unread_s: float = 30.0, telemetry: Telemetry | None = None,
) -> AsyncIterator[tuple[OnePair, RecordingObserver]]:
    """A router in front of one engine with these workers attached."""
    observer = RecordingObserver()
    router = OnePair(
        observer, eos_token_ids=eos_token_ids, text_source=text_source, max_buffered_tokens=max_buffered_tokens,
        unread_s=unread_s, telemetry=telemetry)
    router.start(asyncio.get_running_loop())
    router.engine.start()
    router.add(router.engine, slots=max_active, blocks=0)
    try:
        await asyncio.to_thread(router.attach_verifier, verifier)
        if drafter is not None:
            await asyncio.to_thread(router.attach_drafter, drafter)
        yield router, observer
    finally:
        await asyncio.to_thread(router.engine.close)
