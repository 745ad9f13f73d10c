"""One measured text: what every configuration, ours or transformers', yields for one prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """What speculation did for one text: ``qspec.v1.SpeculationStats``, counts and seconds."""

    rounds: int
    drafted: int
    accepted: int
    accepted_per_position: tuple[int, ...]
    drafted_per_position: tuple[int, ...]
    rounds_per_draft_length: tuple[int, ...]
    draft_s: float
    verify_s: float
    rpc_s: float
    round_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One text and its times in seconds, counted from the request's admission unless stated otherwise."""

    prompt_tokens: int
    token_ids: tuple[int, ...]
    """What was generated, an end-of-sequence token included."""
    first_token_s: float
    """Until the first token; this is the prefill."""
    total_s: float
    """Until the last token."""
    wall_s: float
    """As the caller sees it: from the request to the end of the answer."""
    speculation: Speculation | None = None
    """None for other engines."""
    arrivals: tuple[tuple[float, int], ...] = ()
    """When tokens came to the caller, by a clock that texts share, and how many; none of other engines."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Sample:
        """A sample of another engine from ``dataclasses.asdict`` of it, after its way through JSON."""
        return cls(**{**record, "token_ids": tuple(record["token_ids"])})

    @property
    def decode_tokens(self) -> int:
        """Tokens after the first."""
        return len(self.token_ids) - 1

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""
        return self.total_s - self.first_token_s

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; needs at least one such token."""
        return self.decode_tokens / self.decode_s

    @property
    def end_to_end_rate(self) -> float:
        """Tokens per second as the caller sees them, prefill included."""
        return len(self.token_ids) / self.wall_s

    @property
    def digest(self) -> str:
        """Hash of the tokens, to compare texts between runs."""
        return hashlib.sha256(" ".join(map(str, self.token_ids)).encode()).hexdigest()[:16]


def rate_together(samples: Sequence[Sample]) -> float:
    """Tokens per second of texts that were asked for at once, while all of them were being decoded.

    That is from the last one's first token to the first one's last; each text counts by its own messages in between.
    Texts of one length end together where nobody drafts, and one by one where somebody does: until the very last token
    there would be fewer of them in a pass. ``ValueError`` where a text has fewer than two messages then.
    """
    begun = max(sample.arrivals[0][0] for sample in samples)
    ended = min(sample.arrivals[-1][0] for sample in samples)
    rate = 0.0
    for sample in samples:
        (first, _), *others = [(at, count) for at, count in sample.arrivals if begun <= at <= ended] or [(begun, 0)]
        if not others:
            raise ValueError("the texts were not decoded together for long enough: ask for longer ones")
        rate += sum(count for _, count in others) / (others[-1][0] - first)
    return rate


def first_difference(left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    """The first position at which two texts differ, one that ends earlier included; None when they are equal."""
    for position, (ours, theirs) in enumerate(zip(left, right, strict=False)):
        if ours != theirs:
            return position
    return None if len(left) == len(right) else min(len(left), len(right))
