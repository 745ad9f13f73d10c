"""One stream as its client saw it: when which tokens came."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """Times in seconds after the block's first arrival."""

    due_s: float
    """When the request was to come. Latencies count from here, so that a late generator hides nothing."""
    sent_s: float
    deliveries: tuple[tuple[float, int], ...]
    """(when, tokens) of every message with tokens; at least one."""
    prompt_tokens: int
    digest: str
    """Hash of the tokens, to compare texts."""
    rounds: int
    drafted: int
    accepted: int
    server_s: float
    """From admission to the last token, as the server says."""
    call_s: float
    """Seconds of this in which the stream was in a draft or verify call."""
    rpc_s: float
    """Seconds of those calls that the workers did not work."""

    @classmethod
    def of(cls, due_s: float, sent_s: float, messages: Sequence[tuple[float, bytes]]) -> StreamRecord:
        """From messages as they came, serialised. ``QspecError`` for a stream without tokens or without an end."""
        token_ids: list[int] = []
        deliveries = []
        last = pb.GenerateResponse()
        for when, message in messages:
            last = pb.GenerateResponse.FromString(message)
            if last.token_ids:
                deliveries.append((when, len(last.token_ids)))
                token_ids.extend(last.token_ids)
        if not deliveries or not last.finish_reason:
            raise QspecError("a stream ended without tokens, or without a reason")
        stats = last.speculation
        if stats.rounds_without_drafter:
            raise QspecError("the drafter was lost meanwhile, so this run says nothing")
        return cls(
            due_s=due_s, sent_s=sent_s, deliveries=tuple(deliveries), prompt_tokens=last.usage.prompt_tokens,
            digest=hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()[:16],
            rounds=stats.rounds, drafted=stats.drafted, accepted=stats.accepted,
            server_s=last.usage.total_s, call_s=stats.draft_s + stats.verify_s, rpc_s=stats.rpc_s,
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StreamRecord:
        """From ``dataclasses.asdict`` after its way through JSON."""
        return cls(**{**record, "deliveries": tuple((when, tokens) for when, tokens in record["deliveries"])})

    @property
    def tokens(self) -> int:
        """Tokens that came."""
        return sum(tokens for _, tokens in self.deliveries)

    @property
    def first_s(self) -> float:
        """When the first tokens came."""
        return self.deliveries[0][0]

    @property
    def last_s(self) -> float:
        """When the last tokens came."""
        return self.deliveries[-1][0]

    @property
    def first_token_s(self) -> float:
        """From arrival to the first token."""
        return self.first_s - self.due_s

    @property
    def end_to_end_s(self) -> float:
        """From arrival to the last token."""
        return self.last_s - self.due_s

    @property
    def per_token_s(self) -> float | None:
        """Seconds per token after the first message; None when all came with it."""
        later = self.tokens - self.deliveries[0][1]
        return (self.last_s - self.first_s) / later if later else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between one message with tokens and the next."""
        return [after[0] - before[0] for before, after in zip(self.deliveries, self.deliveries[1:], strict=False)]
