"""All pairs of one server: started together, added and taken away while it serves.

The server's own pairs have to start, every one of them, before it serves; of those that somebody else runs one is
enough, and the others join when they are there. A pair that fails later on is left out, and told about
(``GetServerInfo``); the server fails with the last one.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from coordinator.engine import Engine
from coordinator.pair import Pair
from coordinator.pair_environment import PairEnvironments
from coordinator.pair_runner import PairRunner
from coordinator.pair_source import PairSource
from coordinator.router import Router
from coordinator.serving import Serving
from coordinator.stack import MODULES, Stack, StackStopped
from coordinator.start_progress import PairsProgress, StartProgress
from qspec.config import StackConfig
from qspec.interfaces import VerifierDescription
from qspec.quant.methods import NO_DRAFTER


class Pairs:
    """See the module. ``start`` once, ``change`` then, ``stop`` at the end."""

    def __init__(
        self,
        config: StackConfig,
        serving: Serving,
        sources: Sequence[PairSource],
        *,
        directory: Path,
        environments: PairEnvironments,
        make_engine: Callable[[Stack, VerifierDescription], Engine],
        tell: Callable[[str, float], None],
        grace_s: float,
        modules: Mapping[str, str] = MODULES,
        worker_options: Sequence[str] = (),
    ) -> None:
        """
        Args:
            config: of every pair.
            serving: its ``pairs`` are written, its ``router`` is used; ``make_engine`` has to see to it.
            sources: the pairs to start with, at least one.
            directory: for the sockets; the first pair's own, others have directories in it.
            environments: what workers find in theirs.
            make_engine: called once for each pair, when its first verifier is there.
            tell: is told how far the start is.
            grace_s: seconds that requests get to end on a pair that goes, before they are moved.
            modules: programs of the workers, by role.
        """
        self._config = config
        self._serving = serving
        self._directory = directory
        self._environments = environments
        self._make_engine = make_engine
        self._grace_s = grace_s
        self._modules = modules
        self._worker_options = worker_options
        self._numbers = itertools.count(1)
        self._progress = PairsProgress(len(sources), tell)
        self._lock = threading.Condition()
        self._stopping = False
        self._started = False
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called once, from another thread, when no pair is left."""
        first_own: PairRunner | None = None
        self._runners: list[PairRunner] = []
        for source in sources:  # the first one finds out what ``auto`` means, and converts the model, for all
            runner = self._runner(source, first_own.settled if first_own is not None and source.own else None)
            first_own = first_own or (runner if source.own else None)
            self._runners.append(runner)

    def start(self) -> None:
        """Start them; blocks until the server can serve. Raises what keeps it from that."""
        with self._lock:
            self._tell_pairs()
            for runner in self._runners:
                runner.start()
            self._lock.wait_for(lambda: self._stopping or self._verdict())
            if self._stopping:
                raise StackStopped("the server is shutting down")
            if (error := self._start_error()) is not None:
                raise error
            self._started = True

    def change(self, sources: Sequence[PairSource]) -> None:
        """Have these pairs from now on: those that are new are added, those that are missing go. Does not wait."""
        with self._lock:
            if self._stopping:
                return
            missing = Counter(sources)
            for runner in list(self._runners):
                if runner.leaving:
                    continue
                if missing[runner.source] > 0:
                    missing[runner.source] -= 1
                elif runner.error is not None:
                    self._runners.remove(runner)
                else:
                    runner.retire()
            for source in missing.elements():
                runner = self._runner(source, None)
                self._runners.append(runner)
                runner.start()
            self._tell_pairs()

    def stop(self) -> None:
        """End all of them; blocks. Nothing is left running."""
        with self._lock:
            self._stopping = True
            runners = list(self._runners)
            self._lock.notify_all()
        for runner in runners:
            runner.stop()
        for runner in runners:
            runner.join()

    def _runner(self, source: PairSource, after: threading.Event | None) -> PairRunner:
        number = next(self._numbers)
        directory = self._directory if number == 1 else self._directory / f"pair-{number}"
        return PairRunner(
            source, Pair(str(number)), open_stack=lambda pair: self._open_stack(source, pair, number, directory),
            router=self._router, changed=self._changed, after=after, grace_s=self._grace_s)

    @contextlib.contextmanager
    def _open_stack(self, source: PairSource, pair: Pair, number: int, directory: Path) -> Iterator[Stack]:
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            with self._environments.of(source, directory) as environment:
                yield self._stack(source, pair, number, directory, environment)
        finally:
            if directory != self._directory:
                shutil.rmtree(directory, ignore_errors=True)

    def _stack(
        self, source: PairSource, pair: Pair, number: int, directory: Path, environment: Mapping[str, str]
    ) -> Stack:
        config = self._config
        if (first := self._serving.verifier) is not None:
            config = config.settled(draft=first.draft_quantization, verify=first.verify_quantization)
        pair.drafts = source.drafter is not None or config.draft_quantization != NO_DRAFTER
        roles = ("verifier", "drafter") if pair.drafts else ("verifier",)
        return Stack(
            config, pair, StartProgress(roles, self._progress.of(number - 1, pair.name)),
            agreement=self._serving.agreement, runtime_dir=directory, verifier_address=source.verifier,
            drafter_address=source.drafter, make_engine=self._make_engine, modules=self._modules,
            environment=environment, worker_options=self._worker_options)

    def _router(self) -> Router:
        assert self._serving.router is not None  # made with the first engine
        return self._serving.router

    # ---- called by the pairs' threads -------------------------------------------------------------------------------

    def _changed(self) -> None:
        """A pair serves, has failed, or is gone."""
        with self._lock:
            for runner in list(self._runners):
                if runner.leaving and runner.gone.is_set():
                    self._runners.remove(runner)
            self._tell_pairs()
            self._lock.notify_all()
            if not self._started or self._stopping or any(runner.error is None for runner in self._runners):
                return
            self._stopping = True
            failed = self._runners[-1].error
        assert failed is not None  # none is left that did not fail
        self.on_failure(failed)

    def _verdict(self) -> bool:
        """Whether it is known if the server can serve."""
        own = [runner for runner in self._runners if runner.source.own]
        settled = [runner for runner in self._runners if runner.settled.is_set()]
        if self._start_error() is not None:
            return True
        serving = any(runner.error is None for runner in settled)
        return serving and all(runner in settled for runner in own)

    def _start_error(self) -> BaseException | None:
        """Why the server cannot start: one of its own pairs failed, or all did."""
        failed = [runner for runner in self._runners if runner.error is not None]
        own = [runner for runner in failed if runner.source.own]
        if own or len(failed) == len(self._runners):
            return (own or failed)[0].error
        return None

    def _tell_pairs(self) -> None:
        self._serving.pairs = tuple(runner.pair for runner in self._runners)
