"""What a server streams, as values: pieces of text, and how each text ended.

Fields that a newer server adds are not seen here; those that an older one does not send are zero or empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import types_pb2


class FinishReason(Enum):
    """Why a text ended."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    STOP_TOKEN = "stop_token"
    DEAD_END = "dead_end"
    UNKNOWN = "unknown"
    """One that a newer server has."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable the verifier's model found one token, and the most probable ones in its place."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability, most probable first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts and times of one text."""

    prompt_tokens: int
    completion_tokens: int
    tokens_per_second: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """What speculation did for one text; the proto file describes each field."""

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
    rounds_without_drafter: int
    recomputations: int

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted; 0 where none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Drafted tokens accepted per round."""
        return self.accepted / self.rounds if self.rounds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How a text ended."""

    reason: FinishReason
    matched_stop: str | None
    """The stop string that matched, if one did."""
    matched_stop_token: int | None
    """The stop token that ended the text, if one did."""
    usage: Usage
    speculation: Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of one text: what was decided since the piece before."""

    text: str = ""
    """Whole characters."""
    token_ids: tuple[int, ...] = ()
    choice: int = 0
    """Which of the ``n`` texts this is of."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``token_ids``, where they are asked for."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    """With ``echo``, in the first piece."""
    request_id: str = ""
    """In the first piece only."""
    finish: Finish | None = None
    """In the last piece only."""


def delta_from_pb(message: pb.GenerateResponse) -> Delta:
    """One message of a stream."""
    return Delta(
        text=message.text,
        token_ids=tuple(message.token_ids),
        choice=message.choice,
        logprobs=tuple(map(_logprob, message.logprobs)),
        prompt_logprobs=tuple(map(_logprob, message.prompt_logprobs)),
        prompt_token_ids=tuple(message.prompt_token_ids),
        request_id=message.request_id,
        finish=None if message.finish_reason == pb.FINISH_REASON_UNSPECIFIED else _finish(message),
    )


def _finish(message: pb.GenerateResponse) -> Finish:
    usage, stats = message.usage, message.speculation
    return Finish(
        reason=_finish_reason(message.finish_reason),
        matched_stop=message.matched_stop if message.HasField("matched_stop") else None,
        matched_stop_token=message.matched_stop_token if message.HasField("matched_stop_token") else None,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            tokens_per_second=usage.tokens_per_second,
            time_to_first_token_s=usage.time_to_first_token_s,
            total_s=usage.total_s,
        ),
        speculation=Speculation(
            rounds=stats.rounds,
            drafted=stats.drafted,
            accepted=stats.accepted,
            accepted_per_position=tuple(stats.accepted_per_position),
            drafted_per_position=tuple(stats.drafted_per_position),
            rounds_per_draft_length=tuple(stats.rounds_per_draft_length),
            draft_s=stats.draft_s,
            verify_s=stats.verify_s,
            rpc_s=stats.rpc_s,
            round_s=stats.round_total_s,
            rounds_without_drafter=stats.rounds_without_drafter,
            recomputations=stats.recomputations,
        ),
    )


def _finish_reason(value: int) -> FinishReason:
    if value not in pb.FinishReason.values():
        return FinishReason.UNKNOWN
    name = pb.FinishReason.Name(value).removeprefix("FINISH_REASON_")
    return FinishReason.__members__.get(name, FinishReason.UNKNOWN)


def _logprob(message: types_pb2.TokenLogprobs) -> TokenLogprob:
    top = zip(message.top_token_ids, message.top_logprobs, strict=True)
    return TokenLogprob(message.logprob, tuple(top))
