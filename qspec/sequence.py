"""One text while it is being made: its committed tokens, how they are drawn, and what speculation did for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from qspec.acceptance_estimate import AcceptanceEstimate
from qspec.constraint import Constraint
from qspec.interfaces import Sampling, TokenLogprobs
from qspec.prefix_hash import extend_hashes


class FinishReason(Enum):
    """Why a text ended."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_STRING = "stop_string"
    STOP_TOKEN = "stop_token"
    LENGTH = "length"
    DEAD_END = "dead_end"
    """Nothing that the constraint allows could follow: the text does not satisfy it."""


@dataclass(slots=True)
class SequenceStats:
    """What speculation did for one sequence. Times are those of the whole batch that it was in."""

    rounds: int = 0
    """Verify passes that decided on it."""
    drafted: int = 0
    accepted: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    drafted_per_position: list[int] = field(default_factory=list)
    rounds_per_draft_length: list[int] = field(default_factory=list)
    draft_s: float = 0.0
    verify_s: float = 0.0
    rpc_s: float = 0.0
    """Draft and verify calls less the time that the workers themselves report."""
    round_s: float = 0.0
    rounds_without_drafter: int = 0
    recomputations: int = 0

    def record(self, drafted: int, accepted: int) -> None:
        """Count one round's outcome."""
        self.rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        _count(self.rounds_per_draft_length, range(drafted, drafted + 1))
        _count(self.drafted_per_position, range(drafted))
        _count(self.accepted_per_position, range(accepted), length=drafted)


def _count(counts: list[int], indices: range, length: int = 0) -> None:
    """Add one at each index, growing the list (to ``length`` at least) as needed."""
    missing = max(length, indices.stop) - len(counts)
    counts.extend([0] * missing)
    for index in indices:
        counts[index] += 1


@dataclass(slots=True, eq=False)
class Sequence:
    """One text. The first group of fields is the request's, the rest belongs to the loop."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    eos_token_ids: frozenset[int] = frozenset()
    draft_length: int | None = None
    """Tokens to draft per round; None leaves it to the policy."""
    stop_token_ids: frozenset[int] = frozenset()
    """End the text like an end-of-sequence token, which they may be, too."""
    constraint: Constraint | None = None
    """What the text has to be."""
    cache_salt: str = ""
    """KV entries are shared with sequences of the same salt only."""
    client: str = ""
    """Who asks for it."""
    priority: int = 0
    """Among the client's own: the lowest gives way first."""
    deadline: float | None = None
    """Time of the loop's clock from which on nobody wants it any more; whoever knows that removes it."""

    tokens: list[int] = field(init=False)
    """Committed tokens: the prompt, then what was generated."""
    prompt_logprobs: list[TokenLogprobs] = field(init=False, default_factory=list)
    """Of the prompt's tokens from the second on, where they are asked for."""
    finish: FinishReason | None = field(init=False, default=None)
    matched_token: int | None = field(init=False, default=None)
    """The one of ``stop_token_ids`` that ended it."""
    stats: SequenceStats = field(init=False, default_factory=SequenceStats)
    acceptance: AcceptanceEstimate = field(init=False, default_factory=AcceptanceEstimate)
    slot: int = field(init=False, default=-1)
    lease: int = field(init=False, default=0)
    admitted: bool = field(init=False, default=False)
    """Whether the verifier knows of the tenancy."""
    cached_len: int = field(init=False, default=0)
    reserved_len: int = field(init=False, default=0)
    """Positions that the verifier has KV blocks for."""
    undecided: bool = field(init=False, default=False)
    """Whether the verifier was asked last and has not decided yet: until it does, drafts are of no use."""
    arrival: int = field(init=False, default=0)
    """Place in the order in which sequences came."""
    _losses: int = field(init=False, default=0, repr=False)
    _lost_len: int = field(init=False, default=-1, repr=False)
    cached_prompt_tokens: int | None = field(init=False, default=None)
    """Tokens of the prompt whose entries the verifier had already when it admitted the sequence first."""
    _block_names: list[bytes] = field(init=False, default_factory=list, repr=False)
    _named_size: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt or self.max_tokens < 1:
            raise ValueError("a sequence needs a prompt token and room for a new one")
        self.tokens = list(self.prompt)

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def generated(self) -> list[int]:
        """Tokens made so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Tokens that end the text; they are committed, and no part of it."""
        return self.eos_token_ids | self.stop_token_ids

    @property
    def remaining(self) -> int:
        """Tokens that may still be made."""
        return self.max_tokens - (len(self.tokens) - len(self.prompt))

    @property
    def missing(self) -> int:
        """Committed tokens to be entered into the cache before the pending one."""
        return len(self.tokens) - 1 - self.cached_len

    @property
    def ready(self) -> bool:
        """Whether everything but the pending token is cached, so that it can be drafted for."""
        return not self.missing

    @property
    def tenancy_sampling(self) -> Sampling:
        """How a verifier is to draw from now on: what is known of the prompt need not be told again."""
        if self.sampling.prompt_logprobs is None or len(self.prompt_logprobs) < self.prompt_len - 1:
            return self.sampling
        return replace(self.sampling, prompt_logprobs=None)

    @property
    def reusable_tokens(self) -> tuple[int, ...]:
        """Tokens whose entries the verifier may take from others: none while it has to tell how probable each was."""
        return tuple(self.tokens[:-1]) if self.reuses else ()

    @property
    def reuses(self) -> bool:
        """Whether there are such tokens."""
        return len(self.tokens) > 1 and self.tenancy_sampling.prompt_logprobs is None

    def block_names(self, block_size: int) -> list[bytes]:
        """Names of the full KV blocks of all tokens but the pending one (``qspec.prefix_hash``); not to be changed."""
        if self._named_size != block_size:
            self._block_names, self._named_size = [], block_size
        if (len(self._block_names) + 1) * block_size < len(self.tokens):
            extend_hashes(self._block_names, self.tokens[:-1], block_size, self.cache_salt)
        return self._block_names

    def note_reused(self, reused_len: int) -> None:
        """The verifier had the entries of so many positions; what it has after a recomputation does not count."""
        if self.cached_prompt_tokens is None:
            self.cached_prompt_tokens = min(reused_len, self.prompt_len)

    @property
    def losses_without_progress(self) -> int:
        """Verifiers that were lost one after the other while it ran, and no token was made in between."""
        return self._losses if self._lost_len == len(self.tokens) else 0

    def note_loss(self) -> None:
        """The verifier was lost while it ran."""
        self._losses, self._lost_len = self.losses_without_progress + 1, len(self.tokens)

    def token_behind(self, cached_len: int) -> int | None:
        """What a chunk has to say of the token behind it: nothing, unless the verifier is to tell how probable it was.
        """
        return self.tokens[cached_len] if self.tenancy_sampling.prompt_logprobs is not None else None

    def note_prompt_logprobs(self, start: int, logprobs: tuple[TokenLogprobs, ...]) -> None:
        """Take in those of the tokens behind positions ``start…``; of a repeated prefill only what is new."""
        self.prompt_logprobs.extend(logprobs[max(len(self.prompt_logprobs) - start, 0) :])

    def commit(self, token_ids: tuple[int, ...], max_model_len: int) -> tuple[int, ...]:
        """Append decided tokens up to one that ends the text or the limits; returns those that were taken."""
        taken: list[int] = []
        for token in token_ids:
            if self.finish is not None:
                break
            taken.append(token)
            self.tokens.append(token)
            if token in self.stop_token_ids:
                self.finish, self.matched_token = FinishReason.STOP_TOKEN, token
            elif token in self.eos_token_ids:
                self.finish = FinishReason.END_OF_SEQUENCE
            elif self.remaining == 0 or len(self.tokens) >= max_model_len:
                self.finish = FinishReason.LENGTH
        return tuple(taken)
