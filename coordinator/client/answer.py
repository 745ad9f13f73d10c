"""One generated text with its figures, as the client shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qspec.client import Completion, TokenLogprob


@dataclass(frozen=True, slots=True)
class Answer:
    """What has come of one prompt."""

    prompt: str
    completion: Completion

    @property
    def choice(self) -> int:
        """Which of the prompt's texts this is."""
        return self.completion.choice

    @property
    def text(self) -> str:
        """The text."""
        return self.completion.text

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        completion, finish = self.completion, self.completion.finish
        usage, stats = finish.usage, finish.speculation
        return {
            "prompt": self.prompt,
            "choice": self.choice,
            "text": self.text,
            "token_ids": list(completion.token_ids),
            **_logprobs("logprobs", completion.logprobs),
            **_logprobs("prompt_logprobs", completion.prompt_logprobs),
            "finish_reason": finish.reason.value,
            "matched_stop": finish.matched_stop,
            "matched_stop_token": finish.matched_stop_token,
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
                "acceptance_rate": stats.acceptance_rate,
                "mean_accepted_length": stats.mean_accepted_length,
                "tokens_per_round": usage.completion_tokens / stats.rounds if stats.rounds else 0.0,
                "draft_s": stats.draft_s,
                "verify_s": stats.verify_s,
                "rpc_s": stats.rpc_s,
                "round_s": stats.round_s,
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


def _logprobs(name: str, values: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """The field ``name``, where there are any."""
    if not values:
        return {}
    return {name: [
        {"logprob": each.logprob, "top": [{"token_id": token, "logprob": value} for token, value in each.top]}
        for each in values
    ]}
