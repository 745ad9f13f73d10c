"""One worker of a stack as the coordinator sees it: a process of its own, or an address that others look after."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coordinator.supervisor import ChildProcess
from qspec.errors import QspecError
from qspec.rpc.health import why_not_serving

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""Replacements in a row before a worker is given up; a worker that held for ``STEADY_S`` counts afresh."""
STEADY_S = 60.0
START_TIMEOUT_S = 600.0
"""Seconds after which a process that is not ready is taken for hung."""
FOREIGN_TOLD_AFTER_S = 3.0
"""Seconds after which it is told that somebody else's worker is waited for."""
_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 8.0


class Worker:
    """A verifier or a drafter. With ``arguments`` it is started and replaced; without, somebody else does that."""

    def __init__(
        self, role: str, module: str, address: str, arguments: Sequence[str] | None, changed: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``module`` is run as a program, ``environment`` added to this process's own; ``changed`` is called, from
        other threads, when it has told something."""
        self.role = role
        self.address = address
        self._module = module
        self.child: ChildProcess | None = None
        self.restarts = 0
        self._arguments = arguments
        self._changed = changed
        self._environment = environment
        self._failures = 0  # in a row
        self._not_before = 0.0
        self._started = 0.0
        self._attached_at: float | None = None
        self._asked_since: float | None = None
        self._absence: str | None = None

    @property
    def managed(self) -> bool:
        """Whether the process is this coordinator's own."""
        return self._arguments is not None

    @property
    def attached(self) -> bool:
        """Whether the engine uses it."""
        return self._attached_at is not None

    @property
    def given_up(self) -> bool:
        """Whether it failed too often to try again."""
        return self.managed and self._failures > MAX_RESTARTS

    def start_with(self, arguments: Sequence[str]) -> None:
        """Use these arguments when it is started again; without effect on somebody else's process."""
        if self.managed:
            self._arguments = arguments

    def tend(self) -> None:
        """Start the process if there is none and it is time."""
        if self._arguments is not None and self.child is None and self._due and not self.given_up:
            self._started = time.monotonic()
            self.child = ChildProcess(self.role, self._module, self._arguments, self._changed, self._environment)

    def is_ready(self) -> bool:
        """Whether it can be attached."""
        if self.managed:
            return self.child is not None and self.child.ready is not None and not self.child.ended
        if not self._due:
            return False
        now = time.monotonic()
        self._not_before = now + _FIRST_DELAY_S
        self._absence = why_not_serving(self.address)
        self._asked_since = None if self._absence is None else self._asked_since or now
        return self._absence is None

    @property
    def absence(self) -> str | None:
        """What is waited for where it is somebody else's and has not been ready for a while, for people."""
        if self._asked_since is None or time.monotonic() - self._asked_since < FOREIGN_TOLD_AFTER_S:
            return None
        return f"waiting for {self.address}: {self._absence}"

    def failure(self) -> QspecError | None:
        """Why the process is of no more use, if so."""
        if self.child is None:
            return None
        if self.child.ended:
            return self.child.failure()
        if self.child.ready is None and time.monotonic() - self._started > START_TIMEOUT_S:
            return QspecError(f"the {self.role} was not ready within {START_TIMEOUT_S:g} s")
        return None

    def mark_attached(self) -> None:
        """The engine uses it from now on."""
        self._attached_at = time.monotonic()

    def discard(self) -> None:
        """Be rid of it, dead, hung or wrong; ``tend`` starts another one after a delay that grows."""
        if self._attached_at is not None and time.monotonic() - self._attached_at > STEADY_S:
            self._failures = 0
        self._attached_at = None
        self.restarts += 1
        delay = min(_FIRST_DELAY_S * 2 ** (self._failures - 1), _LONGEST_DELAY_S) if self._failures else 0.0
        self._failures += 1
        self._not_before = time.monotonic() + delay
        self.end(0.0)

    def end(self, grace_s: float) -> None:
        """Make sure that the process, if there is one, has ended after ``grace_s`` seconds, and remove its socket."""
        if self.child is not None:
            self.child.close(grace_s)
            self.child = None
            if self.address.startswith("unix:"):
                Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def release(self) -> None:
        """The engine uses it no longer, but it is well."""
        self._attached_at = None

    @property
    def _due(self) -> bool:
        return time.monotonic() >= self._not_before
