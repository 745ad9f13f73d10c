"""One generated text with its figures, as the client shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import types_pb2

_FINISH_REASONS = {
    pb.FINISH_REASON_END_OF_SEQUENCE: "end_of_sequence",
    pb.FINISH_REASON_STOP_STRING: "stop_string",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_STOP_TOKEN: "stop_token",
    pb.FINISH_REASON_DEAD_END: "dead_end",
}


@dataclass(slots=True)
class Answer:
    """What has come of one prompt so far."""

    prompt: str
    choice: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)
    last: pb.GenerateResponse | None = None
    """The last piece, once it is there."""

    def add(self, piece: pb.GenerateResponse) -> None:
        """Take the next piece of the stream."""
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += map(_logprobs, piece.logprobs)
        self.prompt_logprobs += map(_logprobs, piece.prompt_logprobs)
        if piece.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
            self.last = piece

    @property
    def ended(self) -> bool:
        """Whether the stream came to its end."""
        return self.last is not None

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        assert self.last is not None
        usage, stats = self.last.usage, self.last.speculation
        return {
            "prompt": self.prompt,
            "choice": self.choice,
            "text": self.text,
            "token_ids": self.token_ids,
            **({"logprobs": self.logprobs} if self.logprobs else {}),
            **({"prompt_logprobs": self.prompt_logprobs} if self.prompt_logprobs else {}),
            "finish_reason": _FINISH_REASONS.get(self.last.finish_reason, "unknown"),
            "matched_stop": self.last.matched_stop if self.last.HasField("matched_stop") else None,
            "matched_stop_token": self.last.matched_stop_token if self.last.HasField("matched_stop_token") else None,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "tokens_per_second": usage.tokens_per_second,
                "time_to_first_token_s": usage.time_to_first_token_s,
                "total_s": usage.total_s,
            },
            "speculation": {
                "rounds": stats.rounds,
                "drafted": stats.drafted,
                "accepted": stats.accepted,
                "accepted_per_position": list(stats.accepted_per_position),
                "drafted_per_position": list(stats.drafted_per_position),
                "rounds_per_draft_length": list(stats.rounds_per_draft_length),
                "acceptance_rate": _ratio(stats.accepted, stats.drafted),
                "mean_accepted_length": _ratio(stats.accepted, stats.rounds),
                "tokens_per_round": _ratio(usage.completion_tokens, stats.rounds),
                "draft_s": stats.draft_s,
                "verify_s": stats.verify_s,
                "rpc_s": stats.rpc_s,
                "round_s": stats.round_total_s,
                "rounds_without_drafter": stats.rounds_without_drafter,
                "recomputations": stats.recomputations,
            },
        }

    def summary(self) -> str:
        """The figures in one line."""
        figures = self.to_json()
        usage, stats = figures["usage"], figures["speculation"]
        parts = [f"{usage['tokens_per_second']:.1f} tokens/s"]
        if stats["drafted"]:
            parts.append(
                f"acceptance {stats['acceptance_rate']:.0%} ({stats['accepted']} of {stats['drafted']} drafted)")
            parts.append(f"mean accepted length {stats['mean_accepted_length']:.2f} per round")
        else:
            parts.append("no speculation")
        parts.append(f"time to first token {usage['time_to_first_token_s']:.2f} s")
        reason = figures["finish_reason"].replace("_", " ")
        return f"{', '.join(parts)}; {usage['completion_tokens']} tokens in {usage['total_s']:.2f} s, ended by {reason}"


def _logprobs(message: types_pb2.TokenLogprobs) -> dict[str, Any]:
    top = zip(message.top_token_ids, message.top_logprobs, strict=True)
    return {"logprob": message.logprob, "top": [{"token_id": token, "logprob": value} for token, value in top]}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
