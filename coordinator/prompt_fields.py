"""The fields of a request that say what is continued: from text, conversation or token ids to tokens.

What is too long for any sequence by its size alone is refused before anything goes through it, so that nobody keeps the
server busy with texts that it cannot take. What is not may be too long all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coordinator.request_limits import RequestLimits
from qspec.errors import FieldViolation, InvalidInput
from qspec.v1 import generation_pb2 as pb

_ROLES = {pb.CHAT_ROLE_SYSTEM: "system", pb.CHAT_ROLE_USER: "user", pb.CHAT_ROLE_ASSISTANT: "assistant"}


class PromptTokenizer(Protocol):
    """What validation needs of ``qspec.models.tokenizer.Tokenizer``."""

    @property
    def most_bytes_per_token(self) -> int:
        """A text of more bytes than so many for each of some tokens has more tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text."""
        ...

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation, laid out by the model's template; ``InvalidInput``."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of what ``render_chat`` gave."""
        ...


def encode_prompt(
    message: pb.GenerateRequest | pb.TokenizeRequest, tokenizer: PromptTokenizer, limits: RequestLimits
) -> list[int]:
    """Token ids of the prompt, at least one; raises ``InvalidInput`` naming every offending part."""
    field = prompt_field(message)
    if field == "prompt":
        raise InvalidInput.field("prompt", "is missing: give one of text, chat and tokens")
    if isinstance(message, pb.GenerateRequest) and field == "tokens":
        return _checked_token_ids(message.tokens.token_ids, limits)
    if field == "text":
        if not message.text:
            raise InvalidInput.field("text", "is empty: give at least one character")
        text, encode = message.text, tokenizer.encode
    else:
        text = tokenizer.render_chat(_checked_messages(message.chat, limits))
        encode = tokenizer.encode_rendered
    if (size := len(text.encode())) > limits.max_model_len * tokenizer.most_bytes_per_token:
        raise InvalidInput.field(
            field, f"is {size} bytes long, more than the {limits.max_model_len} tokens that a sequence holds can stand "
                   "for: shorten it")
    tokens = encode(text)
    if not tokens:
        raise InvalidInput.field(field, "has no tokens: give a text that the model's vocabulary can express")
    return tokens


def prompt_field(message: pb.GenerateRequest | pb.TokenizeRequest) -> str:
    """The prompt's field that is set, or ``prompt`` when none is."""
    return message.WhichOneof("prompt") or "prompt"


def prompt_problem(tokens: int, limits: RequestLimits) -> str | None:
    """What is wrong with a prompt of so many tokens, if anything."""
    longest = limits.max_model_len - 1
    if tokens <= longest:
        return None
    return (f"is {tokens} tokens long, and a sequence holds {limits.max_model_len} including at least one new token: "
            f"shorten it to {longest} tokens, or start the server with more")


def _checked_token_ids(token_ids: Sequence[int], limits: RequestLimits) -> list[int]:
    if not token_ids:
        raise InvalidInput.field("tokens.token_ids", "is empty: give at least one token")
    if problem := prompt_problem(len(token_ids), limits):
        raise InvalidInput.field("tokens", problem)
    foreign = [(index, token) for index, token in enumerate(token_ids) if token >= limits.vocab_size]
    if foreign:
        index, token = foreign[0]
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise InvalidInput.field(
            f"tokens.token_ids[{index}]", f"{token} is outside the vocabulary of {limits.vocab_size} tokens{more}")
    return list(token_ids)


def _checked_messages(chat: pb.ChatPrompt, limits: RequestLimits) -> list[dict[str, str]]:
    violations: list[FieldViolation] = []
    if not chat.messages:
        violations.append(FieldViolation("chat.messages", "is empty: give at least one message"))
    if len(chat.messages) > limits.max_model_len:
        raise InvalidInput.field("chat.messages", f"at most {limits.max_model_len} messages, got {len(chat.messages)}")
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            violations.append(FieldViolation(
                f"chat.messages[{index}].role", f"unknown role {message.role}: use system, user or assistant"))
        if not message.content:
            violations.append(FieldViolation(f"chat.messages[{index}].content", "must not be empty"))
    if violations:
        raise InvalidInput(*violations)
    return [{"role": _ROLES[message.role], "content": message.content} for message in chat.messages]
