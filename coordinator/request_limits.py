"""What the running stack can take of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the running stack can take."""

    max_model_len: int
    """Most positions of a sequence, prompt and completion together."""
    max_draft_length: int
    """Longest draft per round; 0 where nothing drafts."""
    vocab_size: int
    """Token ids are below this."""
