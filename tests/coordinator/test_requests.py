"""Every bound of a request: below, at and above; every violation named at once."""

from __future__ import annotations

import math

import pytest

from coordinator.prompt_fields import encode_prompt
from coordinator.request_limits import RequestLimits
from coordinator.requests import DEFAULT_MAX_TOKENS, MAX_STOP_LENGTH, MAX_STOPS, validate_request
from qspec.constraint import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind
from qspec.errors import InvalidInput
from qspec.interfaces import AcceptanceRule
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.byte_tokenizer import ByteTokenizer
from tests.coordinator.fake_constraints import FakeConstraints

LIMITS = RequestLimits(max_model_len=512, max_draft_length=8, vocab_size=257)


def validate(message: pb.GenerateRequest, limits: RequestLimits = LIMITS):  # type: ignore[no-untyped-def]
    return validate_request(message, ByteTokenizer(), limits, FakeConstraints())


def offending(message: pb.GenerateRequest) -> list[str]:
    with pytest.raises(InvalidInput) as raised:
        validate(message)
    return [violation.field for violation in raised.value.violations]


def chat(*messages: tuple[int, str]) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    request.chat.SetInParent()
    for role, content in messages:
        request.chat.messages.add(role=role, content=content)  # type: ignore[arg-type]
    return request


def biased(*entries: tuple[int, float]) -> pb.GenerateRequest:
    """A request with these biases."""
    return pb.GenerateRequest(text="a", logit_bias=[pb.LogitBias(token_id=t, bias=b) for t, b in entries])


REFUSED = [
    (pb.GenerateRequest(), "prompt"),
    (pb.GenerateRequest(text=""), "text"),
    (pb.GenerateRequest(tokens=pb.TokenPrompt()), "tokens.token_ids"),
    (pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[1, 257, 300])), "tokens.token_ids[1]"),
    (chat(), "chat.messages"),
    (chat((pb.CHAT_ROLE_USER, "")), "chat.messages[0].content"),
    (chat((pb.CHAT_ROLE_USER, "a"), (pb.CHAT_ROLE_UNSPECIFIED, "b")), "chat.messages[1].role"),
    (chat((77, "a")), "chat.messages[0].role"),
    (pb.GenerateRequest(text="a", max_tokens=0), "max_tokens"),
    *((pb.GenerateRequest(text="a", temperature=t), "temperature")
      for t in (-0.1, 5e-324, 9e-4, 1.001e6, 3.5e38, 1e308, math.nan, math.inf, -math.inf)),
    *((pb.GenerateRequest(text="a", top_p=p), "top_p") for p in (0.0, -0.5, 1.0001, math.nan, math.inf)),
    *((pb.GenerateRequest(text="a", min_p=p), "min_p") for p in (-0.01, 1.01, math.nan, math.inf)),
    *((pb.GenerateRequest(text="a", typical_p=p), "typical_p") for p in (0.0, -0.5, 1.01, math.nan, math.inf)),
    *((pb.GenerateRequest(text="a", repetition_penalty=p), "repetition_penalty")
      for p in (0.0, 0.009, -1.0, 100.1, math.nan, math.inf)),
    *((pb.GenerateRequest(text="a", presence_penalty=p), "presence_penalty") for p in (-2.01, 2.01, math.nan)),
    *((pb.GenerateRequest(text="a", frequency_penalty=p), "frequency_penalty") for p in (-2.01, 2.01, -math.inf)),
    *((pb.GenerateRequest(text="a", logprobs=n), "logprobs") for n in (21, 2**32 - 1)),
    *((pb.GenerateRequest(text="a", prompt_logprobs=n), "prompt_logprobs") for n in (21, 2**32 - 1)),
    *((pb.GenerateRequest(text="a", n=n), "n") for n in (0, 65, 2**32 - 1)),
    (biased((257, 1.0)), "logit_bias[0].token_id"),
    (biased((3, 1.0), (2**32 - 1, 1.0)), "logit_bias[1].token_id"),
    (biased((3, 1.0), (4, 1.0), (3, 2.0)), "logit_bias[2].token_id"),
    *((biased((3, bias)), "logit_bias[0].bias") for bias in (-100.1, 100.1, math.nan, math.inf)),
    (biased(*[(1, 0.0)] * 1025), "logit_bias"),
    (pb.GenerateRequest(text="a", min_tokens=3, max_tokens=2), "min_tokens"),
    (pb.GenerateRequest(text="a" * 500, min_tokens=13), "min_tokens"),
    (pb.GenerateRequest(text="a" * 500, min_tokens=13, max_tokens=20), "min_tokens"),
    (pb.GenerateRequest(text="a", min_tokens=2**32 - 1), "min_tokens"),
    (pb.GenerateRequest(text="a", draft_length=9), "draft_length"),
    *((pb.GenerateRequest(text="a", request_id=name), "request_id")
      for name in ("", "x" * 129, "a b", "a\n", "é", "a\x7f")),
    (pb.GenerateRequest(text="a", cache_salt="s" * 257), "cache_salt"),
    *((pb.GenerateRequest(text="a", priority=p), "priority") for p in (-101, 101, 2**31 - 1, -2**31)),
    *((pb.GenerateRequest(text="a", timeout_s=t), "timeout_s")
      for t in (0.0, -1.0, 86400.1, math.nan, math.inf, -math.inf)),
    (pb.GenerateRequest(text="a", stop=["b", ""]), "stop[1]"),
    (pb.GenerateRequest(text="a", stop=["x" * (MAX_STOP_LENGTH + 1)]), "stop[0]"),
    (pb.GenerateRequest(text="a", stop=["x"] * (MAX_STOPS + 1)), "stop"),
    (pb.GenerateRequest(text="a", stop=[str(n) for n in range(10_000)]), "stop"),
    (pb.GenerateRequest(text="a", stop_token_ids=[257]), "stop_token_ids[0]"),
    (pb.GenerateRequest(text="a", stop_token_ids=[3, 4, 3]), "stop_token_ids[2]"),
    (pb.GenerateRequest(text="a", stop_token_ids=range(129)), "stop_token_ids"),
]
"""Requests with one field that is out of its bounds, and which; for ``LIMITS`` and a vocabulary of bytes."""


def test_defaults_are_greedy_and_coupled() -> None:
    request = validate(pb.GenerateRequest(text="hi"))
    assert request.prompt == (104, 105)
    assert request.max_tokens == DEFAULT_MAX_TOKENS
    assert request.sampling.greedy and request.sampling.top_k == 0 and request.sampling.top_p == 1.0
    assert request.sampling.rule is AcceptanceRule.COUPLED
    assert request.stop == () and request.draft_length is None


def test_max_tokens_default_and_request_are_capped_by_the_context() -> None:
    assert validate(pb.GenerateRequest(text="x" * 500)).max_tokens == 12
    assert validate(pb.GenerateRequest(text="x" * 500, max_tokens=100)).max_tokens == 12
    assert validate(pb.GenerateRequest(text="x" * 500, max_tokens=3)).max_tokens == 3


def test_chat_is_laid_out_by_the_template() -> None:
    request = validate(chat((pb.CHAT_ROLE_SYSTEM, "be kind"), (pb.CHAT_ROLE_USER, "hi")))
    assert bytes(request.prompt) == b"[system]be kind\n[user]hi\n"


def test_token_prompt_is_fed_as_it_is() -> None:
    assert validate(pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[0, 256]))).prompt == (0, 256)


def test_unseeded_sampling_is_rejection_with_a_fresh_seed() -> None:
    first, second = (validate(pb.GenerateRequest(text="a", temperature=0.7)).sampling for _ in range(2))
    assert first.rule is AcceptanceRule.REJECTION
    assert 0 <= first.seed < 2**64 and first.seed != second.seed


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_seeded_sampling_is_coupled(seed: int) -> None:
    sampling = validate(pb.GenerateRequest(text="a", temperature=0.7, seed=seed)).sampling
    assert (sampling.rule, sampling.seed) == (AcceptanceRule.COUPLED, seed)


def test_prompt_length_bound() -> None:
    assert validate(pb.GenerateRequest(text="x" * 511)).max_tokens == 1
    with pytest.raises(InvalidInput, match=r"text: is 512 tokens long, and a sequence holds 512 .* 511 tokens"):
        validate(pb.GenerateRequest(text="x" * 512))
    with pytest.raises(InvalidInput, match=r"tokens: is 512 tokens long"):
        validate(pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=[999] * 512)))


@pytest.mark.parametrize("message", [
    pb.GenerateRequest(text="x" * 513), chat((pb.CHAT_ROLE_USER, "é" * 256)), pb.TokenizeRequest(text="x" * 10**6),
])
def test_what_is_too_long_by_its_size_is_not_tokenised(message: pb.GenerateRequest | pb.TokenizeRequest) -> None:
    class Unused(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            raise AssertionError("need not be read")

    with pytest.raises(InvalidInput, match=r"(text|chat): is \d+ bytes long, more than the 512 tokens"):
        encode_prompt(message, Unused(), LIMITS)


def test_a_conversation_has_no_more_messages_than_a_sequence_has_tokens() -> None:
    validate(chat(*[(pb.CHAT_ROLE_USER, "a")] * 40))
    assert offending(chat(*[(77, "")] * 513)) == ["chat.messages"]


@pytest.mark.parametrize(("request_", "field"), REFUSED)
def test_one_field_out_of_bounds_is_named(request_: pb.GenerateRequest, field: str) -> None:
    assert offending(request_) == [field]


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(text="a", max_tokens=1),
        pb.GenerateRequest(text="a", max_tokens=2**32 - 1),
        *(pb.GenerateRequest(text="a", temperature=t) for t in (0.0, -0.0, 1e-3, 1e6)),
        *(pb.GenerateRequest(text="a", temperature=1, top_k=k) for k in (0, 1, 256, 257, 2**31, 2**32 - 1)),
        *(pb.GenerateRequest(text="a", top_p=p) for p in (1e-9, 5e-324, 1.0)),
        *(pb.GenerateRequest(text="a", min_p=p) for p in (0.0, 5e-324, 1.0)),
        *(pb.GenerateRequest(text="a", typical_p=p) for p in (5e-324, 1e-9, 1.0)),
        *(pb.GenerateRequest(text="a", repetition_penalty=p) for p in (0.01, 100.0)),
        *(pb.GenerateRequest(text="a", presence_penalty=p, frequency_penalty=-p) for p in (-2.0, 2.0)),
        biased((0, -100.0), (256, 100.0)),
        *(pb.GenerateRequest(text="a", n=n) for n in (1, 64)),
        *(pb.GenerateRequest(text="a", logprobs=n, prompt_logprobs=20 - n) for n in (0, 20)),
        pb.GenerateRequest(text="a", min_tokens=2, max_tokens=2),
        pb.GenerateRequest(text="a", stop_token_ids=[0, 256]),
        pb.GenerateRequest(text="a", stop_token_ids=range(128)),
        pb.GenerateRequest(text="a" * 500, min_tokens=12),
        pb.GenerateRequest(text="a", draft_length=0),
        pb.GenerateRequest(text="a", draft_length=8),
        pb.GenerateRequest(text="a", request_id="~"),
        pb.GenerateRequest(text="a", request_id="!" * 128),
        pb.GenerateRequest(text="a", priority=-100),
        pb.GenerateRequest(text="a", priority=100),
        pb.GenerateRequest(text="a", cache_salt="é" * 128),
        pb.GenerateRequest(text="a", timeout_s=1e-9),
        pb.GenerateRequest(text="a", timeout_s=86400.0),
        pb.GenerateRequest(text="a", stop=["x" * MAX_STOP_LENGTH] * MAX_STOPS),
    ],
)
def test_bounds_themselves_are_allowed(request_: pb.GenerateRequest) -> None:
    validate(request_)


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (1, 1), (256, 256), (257, 0), (2**31, 0), (2**32 - 1, 0)])
def test_as_many_tokens_as_there_are_or_more_are_all(asked: int, kept: int) -> None:
    assert validate(pb.GenerateRequest(text="a", temperature=1, top_k=asked)).sampling.top_k == kept


def test_draft_length_zero_is_not_the_default() -> None:
    assert validate(pb.GenerateRequest(text="a", draft_length=0)).draft_length == 0


def test_where_nothing_drafts_a_draft_length_is_refused() -> None:
    none = RequestLimits(max_model_len=512, max_draft_length=0, vocab_size=257)
    assert validate(pb.GenerateRequest(text="a", draft_length=0), none).draft_length == 0
    with pytest.raises(InvalidInput, match="draft_length: this server has no drafter: leave it out, got 1"):
        validate(pb.GenerateRequest(text="a", draft_length=1), none)


def test_how_a_request_is_treated() -> None:
    message = pb.GenerateRequest(text="a", request_id="mine", priority=-3, timeout_s=2.5, cache_salt="my own")
    request = validate(message)
    assert (request.request_id, request.priority, request.timeout_s) == ("mine", -3, 2.5)
    sequence = request.sequence("1", frozenset(), client="somebody")
    assert (sequence.client, sequence.priority, sequence.cache_salt) == ("somebody", -3, "my own")
    request = validate(pb.GenerateRequest(text="a"))
    assert (request.request_id, request.priority, request.timeout_s) == (None, 0, None)


def test_every_violation_is_named_at_once() -> None:
    request = pb.GenerateRequest(text="", max_tokens=0, temperature=math.nan, top_p=2.0, draft_length=99, stop=[""])
    assert offending(request) == ["text", "max_tokens", "temperature", "top_p", "draft_length", "stop[0]"]


def test_what_adjusts_logits_reaches_the_sequence() -> None:
    request = biased((9, 1.5), (3, -2.0))
    request.repetition_penalty, request.presence_penalty, request.frequency_penalty = 1.2, 0.5, -0.5
    request.min_tokens = 300
    valid = validate(request)
    assert valid.max_tokens == 300, "the default is no contradiction"
    sampling = valid.sequence("1", frozenset({7, 2})).sampling
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.2, 0.5, -0.5)
    assert sampling.logit_bias == ((3, -2.0), (9, 1.5))
    assert (sampling.min_tokens, sampling.ending_token_ids) == (300, (2, 7))
    assert not validate(pb.GenerateRequest(text="a")).sequence("1", frozenset({7})).sampling.adjusts_logits


def test_what_ends_a_text_reaches_the_sequence() -> None:
    message = pb.GenerateRequest(text="a", stop_token_ids=[9, 5], min_tokens=2)
    sequence = validate(message).sequence("1", frozenset({7}))
    assert (sequence.eos_token_ids, sequence.stop_token_ids) == ({7}, {5, 9})
    assert sequence.sampling.ending_token_ids == (5, 7, 9)
    message.ignore_eos = True
    sequence = validate(message).sequence("1", frozenset({7}))
    assert (sequence.eos_token_ids, sequence.sampling.ending_token_ids) == (frozenset(), (5, 9))


@pytest.mark.parametrize("field", ["json_schema", "regex", "grammar"])
def test_a_constraint_is_taken_or_refused_by_its_field(field: str) -> None:
    taken = validate(pb.GenerateRequest(text="a", **{field: "good"})).constraint
    assert taken == Constraint(ConstraintKind(field), "good")
    assert offending(pb.GenerateRequest(text="a", **{field: "bad"})) == [field]
    assert offending(pb.GenerateRequest(text="a", ignore_eos=True, **{field: "good"})) == ["ignore_eos"]
    assert validate(pb.GenerateRequest(text="a", **{field: "x" * MAX_CONSTRAINT_BYTES})).constraint is not None
    assert offending(pb.GenerateRequest(text="a", **{field: "x" * (MAX_CONSTRAINT_BYTES + 1)})) == [field]
    assert offending(pb.GenerateRequest(text="a", max_tokens=0, **{field: "é" * 2**19})) == ["max_tokens", field]


def test_without_a_constraint_there_is_none() -> None:
    assert validate(pb.GenerateRequest(text="a")).constraint is None
