"""A request that was checked: every default applied, every bound kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qspec.sampling_options import Sampling
from qspec.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidRequest:
    """A request with every default applied."""

    prompt: tuple[int, ...]
    """Token ids, at least one, leaving room for at least one more."""
    max_tokens: int
    """Most tokens to make, at least 1, never more than the context holds."""
    sampling: Sampling
    """How tokens are drawn."""
    stop: tuple[str, ...]
    """Stop strings."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text."""
    ignore_eos: bool = False
    """Whether the text goes on after an end-of-sequence token."""
    draft_length: int | None
    """Tokens drafted per round; None leaves it to the policy."""
    request_id: str | None = None
    """As its client chose it."""
    priority: int = 0
    """Among the waiting requests of its client the highest goes first."""
    timeout_s: float | None = None
    """Seconds from its arrival within which it has to be finished."""

    def sequence(self, name: str, eos_token_ids: frozenset[int]) -> Sequence:
        """What the decoding loop gets; ``name`` is unique there."""
        eos = frozenset() if self.ignore_eos else eos_token_ids
        endings = tuple(sorted(eos.union(self.stop_token_ids))) if self.sampling.min_tokens else ()
        return Sequence(
            request_id=name,
            prompt=list(self.prompt),
            max_tokens=self.max_tokens,
            sampling=replace(self.sampling, ending_token_ids=endings),
            eos_token_ids=eos,
            draft_length=self.draft_length,
            stop_token_ids=frozenset(self.stop_token_ids),
        )
