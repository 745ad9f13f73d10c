"""A request that was checked: every default applied, every bound kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qspec.constraint import Constraint
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
    choices: int = 1
    """Texts to make of the prompt."""
    echo: bool = False
    """Whether the prompt goes ahead of each text."""
    constraint: Constraint | None = None
    """What each text has to be."""
    draft_length: int | None
    """Tokens drafted per round; None leaves it to the policy."""
    request_id: str | None = None
    """As its client chose it."""
    priority: int = 0
    """Among the requests of its client the highest goes first where they wait, and the lowest gives way first."""
    timeout_s: float | None = None
    """Seconds from its arrival within which it has to be finished."""
    cache_salt: str = ""
    """It shares KV entries with requests of the same salt only."""

    def sequence(self, name: str, eos_token_ids: frozenset[int], choice: int = 0, client: str = "") -> Sequence:
        """What the decoding loop gets for one of the choices of ``client``'s request; ``name`` is unique there.

        The prompt's log-probabilities are the same for all, and told with the first.
        """
        eos = frozenset() if self.ignore_eos else eos_token_ids
        endings = tuple(sorted(eos.union(self.stop_token_ids))) if self.sampling.min_tokens else ()
        return Sequence(
            request_id=name,
            prompt=list(self.prompt),
            max_tokens=self.max_tokens,
            sampling=replace(
                self.sampling, ending_token_ids=endings, choice=choice,
                prompt_logprobs=None if choice else self.sampling.prompt_logprobs),
            eos_token_ids=eos,
            draft_length=self.draft_length,
            stop_token_ids=frozenset(self.stop_token_ids),
            constraint=self.constraint,
            cache_salt=self.cache_salt,
            client=client,
            priority=self.priority,
        )
