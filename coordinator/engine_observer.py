"""Who is told what happens to the workers, and what their work costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qspec.draft_policy import DraftLengthPolicy
from qspec.errors import QspecError
from qspec.interfaces import Drafter, Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured costs in seconds: ``verify_s[k]`` of a verify call over k + 1 rows, and of drafting one token."""

    verify_s: tuple[float, ...] = ()
    draft_step_s: float = 0.0

    @classmethod
    def of(cls, policy: DraftLengthPolicy) -> Costs:
        """What the policy reckons with now."""
        return cls(
            verify_s=tuple(policy.costs.verify_seconds(rows) for rows in range(1, policy.longest + 2)),
            draft_step_s=policy.costs.draft_seconds([1]) if policy.costs.known else 0.0,
        )


class EngineObserver(Protocol):
    """Called from the engine's thread, must return at once."""

    def verifier_lost(self, verifier: Verifier, error: QspecError) -> None:
        """This verifier is gone; every stream pauses until another is attached."""
        ...

    def drafter_lost(self, drafter: Drafter, error: QspecError) -> None:
        """This drafter is gone; rounds go on without drafts."""
        ...

    def engine_failed(self, error: BaseException) -> None:
        """A bug: the engine has stopped and every stream was failed."""
        ...
