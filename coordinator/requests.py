"""From a ``GenerateRequest`` to a request that the engine can run, or to *every* reason why it cannot.

Defaults are applied here and in ``coordinator.sampling_fields`` (how tokens are drawn), and nowhere else. The prompt is
``coordinator.prompt_fields``'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.constraint_fields import ConstraintChecker, constraint_violations
from coordinator.prompt_fields import PromptTokenizer, encode_prompt, prompt_field, prompt_problem
from coordinator.request_limits import RequestLimits
from coordinator.sampling_fields import resolve_sampling, sampling_violations, token_problem
from coordinator.valid_request import ValidRequest
from qspec.errors import FieldViolation, InvalidInput
from qspec.rpc.constraint_codec import requested_constraint
from qspec.v1 import generation_pb2 as pb

DEFAULT_MAX_TOKENS = 256
"""Tokens to make when a request does not say, or what the context still holds if that is less."""
MAX_STOPS = 16
"""Most stop strings in a request."""
MAX_STOP_TOKENS = 128
"""Most entries of ``stop_token_ids``."""
MAX_STOP_LENGTH = 256
"""Most characters of a stop string."""
MAX_ID_LENGTH = 128
"""Most characters of a request id, and of a client id."""
MAX_PRIORITY = 100
"""Highest priority; its negative is the lowest."""
MAX_SALT_BYTES = 256
"""Longest ``cache_salt``, as UTF-8."""
MAX_TIMEOUT_S = 86_400.0
"""Longest ``timeout_s``."""


def validate_request(
    message: pb.GenerateRequest, tokenizer: PromptTokenizer, limits: RequestLimits, constraints: ConstraintChecker
) -> ValidRequest:
    """The request, or ``InvalidInput`` naming every offending field at once."""
    violations: list[FieldViolation] = []
    prompt: list[int] = []
    try:
        prompt = encode_prompt(message, tokenizer, limits)
        if problem := prompt_problem(len(prompt), limits):
            violations.append(FieldViolation(prompt_field(message), problem))
    except InvalidInput as error:
        violations += error.violations
    room = limits.max_model_len - len(prompt)
    violations += _length_violations(message, room)
    violations += sampling_violations(message, limits.vocab_size)
    violations += _flow_violations(message, limits)
    violations += stop_violations(message.stop)
    violations += _stop_token_violations(message, limits.vocab_size)
    violations += constraint_violations(message, constraints)
    if violations:
        raise InvalidInput(*violations)
    default = max(DEFAULT_MAX_TOKENS, message.min_tokens)
    wanted = message.max_tokens if message.HasField("max_tokens") else default
    return ValidRequest(
        prompt=tuple(prompt),
        max_tokens=min(wanted, room),
        sampling=resolve_sampling(message, limits.vocab_size),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        choices=message.n if message.HasField("n") else 1,
        echo=message.echo,
        constraint=requested_constraint(message),
        draft_length=message.draft_length if message.HasField("draft_length") else None,
        request_id=message.request_id if message.HasField("request_id") else None,
        priority=message.priority,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        cache_salt=message.cache_salt,
    )


def stop_violations(stops: Sequence[str]) -> Iterator[FieldViolation]:
    """What is wrong with the stop strings."""
    if len(stops) > MAX_STOPS:
        yield FieldViolation("stop", f"at most {MAX_STOPS} stop strings, got {len(stops)}")
    for index, stop in enumerate(stops[:MAX_STOPS]):
        if not stop:
            yield FieldViolation(f"stop[{index}]", "must not be empty: leave it out instead")
        elif len(stop) > MAX_STOP_LENGTH:
            yield FieldViolation(f"stop[{index}]", f"at most {MAX_STOP_LENGTH} characters, got {len(stop)}")


def _stop_token_violations(message: pb.GenerateRequest, vocab_size: int) -> Iterator[FieldViolation]:
    tokens, seen = message.stop_token_ids, set[int]()
    if len(tokens) > MAX_STOP_TOKENS:
        yield FieldViolation("stop_token_ids", f"at most {MAX_STOP_TOKENS} tokens, got {len(tokens)}")
        return
    for index, token in enumerate(tokens):
        if problem := token_problem(token, vocab_size, seen):
            yield FieldViolation(f"stop_token_ids[{index}]", problem)


def id_problem(text: str) -> str | None:
    """What is wrong with an id that a client chose, if anything."""
    if not 1 <= len(text) <= MAX_ID_LENGTH:
        return f"must have from 1 to {MAX_ID_LENGTH} characters, got {len(text)}"
    if not all("!" <= character <= "~" for character in text):
        return "must consist of visible ASCII characters"
    return None


def priority_problem(priority: int) -> str | None:
    """What is wrong with a priority, if anything."""
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        return f"must be from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {priority}"
    return None


def timeout_problem(timeout_s: float) -> str | None:
    """What is wrong with a time limit, if anything."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:  # false for NaN, too
        return f"must be a number of seconds above 0 and at most {MAX_TIMEOUT_S:g}, got {timeout_s:g}"
    return None


def _flow_violations(message: pb.GenerateRequest, limits: RequestLimits) -> Iterator[FieldViolation]:
    """What is wrong with the fields that say how a request is treated, not what it generates."""
    if message.HasField("draft_length") and message.draft_length > limits.max_draft_length:
        most = f"drafts at most {limits.max_draft_length} tokens per round" if limits.max_draft_length else (
            "has no drafter: leave it out")
        yield FieldViolation("draft_length", f"this server {most}, got {message.draft_length}")
    if message.HasField("request_id") and (problem := id_problem(message.request_id)):
        yield FieldViolation("request_id", problem)
    if problem := priority_problem(message.priority):
        yield FieldViolation("priority", problem)
    if message.HasField("timeout_s") and (problem := timeout_problem(message.timeout_s)):
        yield FieldViolation("timeout_s", problem)
    if (length := len(message.cache_salt.encode())) > MAX_SALT_BYTES:
        yield FieldViolation("cache_salt", f"must have at most {MAX_SALT_BYTES} bytes, got {length}")


def _length_violations(message: pb.GenerateRequest, room: int) -> Iterator[FieldViolation]:
    """What is wrong with the numbers of tokens; ``room``: new tokens that the context still holds."""
    if message.HasField("max_tokens") and message.max_tokens < 1:
        yield FieldViolation("max_tokens", f"must be at least 1, got {message.max_tokens}")
    elif message.HasField("max_tokens") and message.min_tokens > message.max_tokens:
        yield FieldViolation(
            "min_tokens", f"must be at most max_tokens, {message.max_tokens}, got {message.min_tokens}")
    elif message.min_tokens > max(room, 0):
        yield FieldViolation(
            "min_tokens", f"must be at most {max(room, 0)}, what the context holds behind the prompt, "
            f"got {message.min_tokens}")
