"""The fields of a request that say how tokens are drawn: their bounds, and what they resolve to.

Defaults are applied here and nowhere else. A request with a seed, and a greedy one, is decided by coupling, so that
its text does not depend on speculation; any other draws a seed of its own and is decided by rejection
(``qspec.acceptance``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from qspec.errors import FieldViolation
from qspec.sampling_options import AcceptanceRule, Sampling, temperature_problem
from qspec.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Range:
    """What a number may be."""

    low: float
    high: float
    note: str = ""
    """For people: what the ends mean."""
    open: bool = False
    """Whether ``low`` itself is left out."""

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, if anything."""
        if self.low <= value <= self.high and not (self.open and value == self.low):  # NaN compares false
            return None
        least = f"above {self.low:g} and at most" if self.open else f"from {self.low:g} to"
        return f"must be {least} {self.high:g}{self.note and f' ({self.note})'}, got {value:g}"


MAX_BIASES = 1024
"""Most entries of ``logit_bias``."""
BIAS = Range(-100, 100)
RANGES = {
    "top_p": Range(0, 1, "1 keeps all", open=True),
    "min_p": Range(0, 1, "0 keeps all"),
    "typical_p": Range(0, 1, "1 keeps all", open=True),
    "repetition_penalty": Range(0.01, 100, "1 is none"),
    "presence_penalty": Range(-2, 2, "0 is none"),
    "frequency_penalty": Range(-2, 2, "0 is none"),
    "logprobs": Range(0, 20),
    "prompt_logprobs": Range(0, 20),
    "n": Range(1, 64),
}
"""By field; whoever leaves one out gets its default, which is in range."""


def sampling_violations(message: pb.GenerateRequest, vocab_size: int) -> Iterator[FieldViolation]:
    """Everything that is wrong with the fields that say how tokens are drawn."""
    if message.HasField("temperature") and (problem := temperature_problem(message.temperature)):
        yield FieldViolation("temperature", problem)
    for field, bounds in RANGES.items():
        if message.HasField(field) and (problem := bounds.problem(getattr(message, field))):
            yield FieldViolation(field, problem)
    yield from _bias_violations(message, vocab_size)


def _bias_violations(message: pb.GenerateRequest, vocab_size: int) -> Iterator[FieldViolation]:
    biases = message.logit_bias
    if len(biases) > MAX_BIASES:
        yield FieldViolation("logit_bias", f"at most {MAX_BIASES} tokens, got {len(biases)}")
        return
    seen: set[int] = set()
    for index, entry in enumerate(biases):
        if problem := token_problem(entry.token_id, vocab_size, seen):
            yield FieldViolation(f"logit_bias[{index}].token_id", problem)
        if problem := BIAS.problem(entry.bias):
            yield FieldViolation(f"logit_bias[{index}].bias", problem)


def token_problem(token: int, vocab_size: int, seen: set[int]) -> str | None:
    """What is wrong with a token id in a list whose earlier ones are ``seen``, if anything; it is added to them."""
    if token >= vocab_size:
        return f"{token} is outside the vocabulary of {vocab_size} tokens"
    if token in seen:
        return f"token {token} is there twice"
    seen.add(token)
    return None


def resolve_sampling(message: pb.GenerateRequest, vocab_size: int) -> Sampling:
    """How the tokens of a valid request are drawn. As many tokens as there are, or more, are all of them."""
    temperature = message.temperature if message.HasField("temperature") else 0.0
    seeded = message.HasField("seed")
    by_rejection = temperature > 0 and not seeded
    return Sampling(
        temperature=temperature,
        top_k=message.top_k if message.top_k < vocab_size else 0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        min_p=message.min_p,
        typical_p=message.typical_p if message.HasField("typical_p") else 1.0,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(sorted((entry.token_id, entry.bias) for entry in message.logit_bias)),
        min_tokens=message.min_tokens,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        seed=message.seed if seeded else secrets.randbits(64),
        rule=AcceptanceRule.REJECTION if by_rejection else AcceptanceRule.COUPLED,
    )
