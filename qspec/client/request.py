"""Requests out of Python values: what the messages cannot hold is refused here, by field, as a server would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from qspec.errors import FieldViolation, InvalidInput
from qspec.v1 import generation_pb2 as pb

_ROLES = {"system": pb.CHAT_ROLE_SYSTEM, "user": pb.CHAT_ROLE_USER, "assistant": pb.CHAT_ROLE_ASSISTANT}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[Message] | Sequence[int]
"""Plain text fed as it is; a conversation, laid out by the model's chat template; or token ids."""


class GenerateOptions(TypedDict, total=False):
    """Fields of ``qspec.v1.GenerateRequest`` beside the prompt; docs/api.md says what each means and its default."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    n: int
    echo: bool
    json_schema: str
    regex: str
    grammar: str
    draft_length: int
    request_id: str
    priority: int
    timeout_s: float


def generate_request(prompt: Prompt | pb.GenerateRequest, options: Mapping[str, Any]) -> pb.GenerateRequest:
    """The request; ``InvalidInput`` for what its fields cannot hold, ``TypeError`` for an option that there is not."""
    request = pb.GenerateRequest()
    if isinstance(prompt, pb.GenerateRequest):
        request.CopyFrom(prompt)
    elif problem := _set_prompt(request, prompt):
        raise InvalidInput.field("prompt", problem)
    violations = []
    for name, value in options.items():
        if name not in GenerateOptions.__annotations__:
            known = ", ".join(GenerateOptions.__annotations__)
            raise TypeError(f"generate() has no option {name!r}; there are: {known}")
        try:
            _set_field(request, name, value)
        except (TypeError, ValueError, AttributeError) as error:
            violations.append(FieldViolation(name, f"cannot be {value!r}: {error}"))
    if violations:
        raise InvalidInput(*violations)
    return request


def tokenize_request(prompt: str | Sequence[Message]) -> pb.TokenizeRequest:
    """The request; ``InvalidInput`` for a conversation that is none."""
    request = pb.TokenizeRequest()
    if problem := _set_prompt(request, prompt):
        raise InvalidInput.field("prompt", problem)
    return request


def _set_field(request: pb.GenerateRequest, name: str, value: Any) -> None:
    if name == "logit_bias":
        request.logit_bias.extend(pb.LogitBias(token_id=token, bias=bias) for token, bias in value.items())
    elif name in ("stop", "stop_token_ids"):
        if isinstance(value, str):
            raise TypeError("give a list")
        getattr(request, name).extend(value)
    else:
        setattr(request, name, value)


def _set_prompt(request: pb.GenerateRequest | pb.TokenizeRequest, prompt: Prompt) -> str:
    """Fill the field that fits; returns what is wrong, if anything."""
    try:
        if isinstance(prompt, str):
            request.text = prompt
        elif not prompt:
            return "is empty: give a text, messages or token ids"
        elif all(isinstance(each, Message) for each in prompt):
            for each in prompt:
                assert isinstance(each, Message)
                request.chat.messages.add(role=_ROLES[each.role], content=each.content)
        elif isinstance(request, pb.GenerateRequest):
            request.tokens.token_ids.extend(prompt)  # type: ignore[arg-type]  # not a list of messages
        else:
            return "must be a text or messages"
    except KeyError as error:
        return f"has a message of the role {error}; there are: {', '.join(_ROLES)}"
    except (TypeError, ValueError) as error:
        return f"must be a text, messages or token ids ({error})"
    return ""
