"""What the public service can see of what is behind it: written by program and pairs, read by the service."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from coordinator.agreement import Agreement
from coordinator.constraint_fields import ConstraintChecker
from coordinator.pair import Pair
from coordinator.prompt_fields import PromptTokenizer
from coordinator.request_limits import RequestLimits
from coordinator.router import Router
from coordinator.telemetry import Telemetry
from qspec.interfaces import VerifierDescription


class ServerState(Enum):
    """What the server does at the moment."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class ServingTokenizer(PromptTokenizer, Protocol):
    """What serving needs of ``qspec.models.tokenizer.Tokenizer``."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...


@dataclass(slots=True)
class Serving:
    """The server as it is now; each field is replaced as a whole, so that any thread may read it."""

    model: str
    """As the user named it."""
    max_waiting: int = 0
    """Requests that may wait for a slot."""
    state: ServerState = ServerState.LOADING
    stage: str = "starting"
    """What is being loaded, for people."""
    router: Router | None = None
    tokenizer: ServingTokenizer | None = None
    constraints: ConstraintChecker | None = None
    """Set before the state says that requests are served, as the two above."""
    agreement: Agreement = field(default_factory=Agreement)
    """What all verifiers are like."""
    pairs: tuple[Pair, ...] = ()
    """In the order in which they came."""
    telemetry: Telemetry = field(default_factory=Telemetry)

    @property
    def verifier(self) -> VerifierDescription | None:
        """The first one; all others are like it."""
        return self.agreement.first

    @property
    def limits(self) -> RequestLimits:
        """Bounds of a request; only once a verifier was attached."""
        if self.verifier is None:
            raise RuntimeError("no verifier was attached yet")
        return RequestLimits(
            max_model_len=self.verifier.max_model_len,
            max_draft_length=self.verifier.max_draft_length if any(pair.drafts for pair in self.pairs) else 0,
            vocab_size=self.verifier.vocab_size,
        )
