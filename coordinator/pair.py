"""A pair of workers as the server sees it: a verifier, the drafter that goes with it, and the engine before both."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from coordinator.engine import Engine
from qspec.interfaces import DrafterDescription, VerifierDescription


class PairState(Enum):
    """What a pair does at the moment."""

    STARTING = "starting"
    SERVING = "serving"
    LOST = "lost"
    """Its verifier is gone; its requests run elsewhere, or wait until it is replaced."""
    DRAINING = "draining"
    """Gets no more requests, and goes when those that it has have ended."""
    FAILED = "failed"
    """Given up, or refused."""


@dataclass(slots=True)
class Pair:
    """The pair as it is now; each field is replaced as a whole, so that any thread may read it."""

    name: str = "1"
    stage: PairState = PairState.STARTING
    """What its server makes of it; ``state`` is what it is."""
    detail: str = ""
    """Why it failed."""
    drafts: bool = True
    """Whether there is to be a drafter."""
    engine: Engine | None = None
    """Set before anything is attached."""
    verifier: VerifierDescription | None = None
    drafter: DrafterDescription | None = None
    """None while no drafter is attached."""
    verifier_restarts: int = 0
    drafter_restarts: int = 0
    epochs: int = 0
    """Arenas that were attached so far."""

    @property
    def state(self) -> PairState:
        """What it does at the moment."""
        lost = self.stage is PairState.SERVING and self.engine is not None and self.engine.load is None
        return PairState.LOST if lost else self.stage
