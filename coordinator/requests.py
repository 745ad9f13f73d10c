"""From a ``GenerateRequest`` to a request that the engine can run, or to *every* reason why it cannot.

Defaults are applied here and in ``coordinator.sampling_fields`` (how tokens are drawn), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.constraint_fields import ConstraintChecker, constraint_violations
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

_ROLES = {pb.CHAT_ROLE_SYSTEM: "system", pb.CHAT_ROLE_USER: "user", pb.CHAT_ROLE_ASSISTANT: "assistant"}


class PromptTokenizer(Protocol):
    """What validation needs of ``qspec.models.tokenizer.Tokenizer``."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text."""
        ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a conversation, laid out by the model's template."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the running stack can take."""

    max_model_len: int
    """Most positions of a sequence, prompt and completion together."""
    max_draft_length: int
    """Longest draft per round."""
    vocab_size: int
    """Token ids are below this."""


def validate_request(
    message: pb.GenerateRequest, tokenizer: PromptTokenizer, limits: RequestLimits, constraints: ConstraintChecker
) -> ValidRequest:
    """The request, or ``InvalidInput`` naming every offending field at once."""
    violations: list[FieldViolation] = []
    prompt: list[int] = []
    try:
        prompt = encode_prompt(message, tokenizer, limits.vocab_size)
        if len(prompt) + 1 > limits.max_model_len:
            violations.append(FieldViolation(
                _prompt_field(message),
                f"is {len(prompt)} tokens long, and a sequence holds {limits.max_model_len} including at least one new "
                f"token: shorten it to {limits.max_model_len - 1} tokens, or start the server with more"))
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


def encode_prompt(
    message: pb.GenerateRequest | pb.TokenizeRequest, tokenizer: PromptTokenizer, vocab_size: int
) -> list[int]:
    """Token ids of the prompt, at least one; raises ``InvalidInput`` naming every offending part."""
    field = _prompt_field(message)
    if field == "prompt":
        raise InvalidInput.field("prompt", "is missing: give one of text, chat and tokens")
    if isinstance(message, pb.GenerateRequest) and field == "tokens":
        return _checked_token_ids(message.tokens.token_ids, vocab_size)
    if field == "text":
        if not message.text:
            raise InvalidInput.field("text", "is empty: give at least one character")
        tokens = tokenizer.encode(message.text)
    else:
        tokens = tokenizer.encode_chat(_checked_messages(message.chat))
    if not tokens:
        raise InvalidInput.field(field, "has no tokens: give a text that the model's vocabulary can express")
    return tokens


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
        yield FieldViolation(
            "draft_length",
            f"this server drafts at most {limits.max_draft_length} tokens per round, got {message.draft_length}")
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


def _prompt_field(message: pb.GenerateRequest | pb.TokenizeRequest) -> str:
    """The prompt's field that is set, or ``prompt`` when none is."""
    return message.WhichOneof("prompt") or "prompt"


def _checked_token_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    if not token_ids:
        raise InvalidInput.field("tokens.token_ids", "is empty: give at least one token")
    foreign = [(index, token) for index, token in enumerate(token_ids) if token >= vocab_size]
    if foreign:
        index, token = foreign[0]
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InvalidInput.field(
            f"tokens.token_ids[{index}]", f"{token} is outside the vocabulary of {vocab_size} tokens{more}")
    return list(token_ids)


def _checked_messages(chat: pb.ChatPrompt) -> list[dict[str, str]]:
    violations: list[FieldViolation] = []
    if not chat.messages:
        violations.append(FieldViolation("chat.messages", "is empty: give at least one message"))
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            violations.append(FieldViolation(
                f"chat.messages[{index}].role", f"unknown role {message.role}: use system, user or assistant"))
        if not message.content:
            violations.append(FieldViolation(f"chat.messages[{index}].content", "must not be empty"))
    if violations:
        raise InvalidInput(*violations)
    return [{"role": _ROLES[message.role], "content": message.content} for message in chat.messages]
