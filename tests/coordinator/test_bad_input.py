"""Whatever a request says wrongly is refused by its field, over a real socket, and no running text notices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from qspec.errors import InvalidInput
from qspec.grammar import Grammars
from qspec.interfaces import Sampling
from qspec.models.converted import prepare_tokenizer
from qspec.models.text_stream import REPLACEMENT, TextStream
from qspec.models.tokenizer import Tokenizer
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.coordinator.byte_tokenizer import ByteTokenizer
from tests.coordinator.test_requests import LIMITS, REFUSED, chat
from tests.coordinator.test_service import run, served, until
from tests.fakes import FakeVerifier
from tests.models.test_text_stream import byte_level
from tests.toy_model import continue_text

LONGEST_GAP_S = 0.5
"""Between two pieces of a running text; one is made in a hundredth of that, and what stalls a server takes longer."""
Call = Callable[[pb_grpc.GenerationServiceStub], Awaitable[object]]
BY_FIELD: dict[str, list[pb.GenerateRequest]] = {}
for _request, _field in REFUSED:
    BY_FIELD.setdefault(_field.partition("[")[0], []).append(_request)


@contextlib.asynccontextmanager
async def serving(
    directory: Path, tokenizer: Any = None, constraints: Grammars | None = None, **limits: int
) -> AsyncIterator[Any]:
    """A server with the limits of ``LIMITS``, and whatever tokenizer (None: one of bytes) and constraints (a fake's).
    """
    verifier = FakeVerifier(**{
        "vocab_size": LIMITS.vocab_size, "max_model_len": LIMITS.max_model_len, "num_blocks": 512, **limits},
        delay_s=0.004)  # type: ignore[arg-type]
    async with served(directory, verifier) as (stub, state, _):
        state.tokenizer = tokenizer or ByteTokenizer()
        state.constraints = constraints or state.constraints
        yield stub, state


async def running_text(stub: pb_grpc.GenerationServiceStub, began: asyncio.Event, done: asyncio.Event) -> list[float]:
    """A text that runs from before until after others are refused: the times between its pieces; its tokens are right.
    """
    gaps: list[float] = []
    tokens: list[int] = []
    last, after = time.monotonic(), 0
    prompt = pb.TokenPrompt(token_ids=[1, 2, 3])
    call = stub.Generate(pb.GenerateRequest(tokens=prompt, max_tokens=400, request_id="running", draft_length=0))
    async for piece in call:
        tokens += piece.token_ids
        if began.is_set():
            gaps.append(time.monotonic() - last)
        last = time.monotonic()
        began.set()
        after += done.is_set()
        if after == 5:
            break
    call.cancel()
    assert tokens == continue_text([1, 2, 3], len(tokens), Sampling(), LIMITS.vocab_size)
    return gaps


async def fields_of(call: Awaitable[object]) -> list[str]:
    """The fields that a call is refused for."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, raised.value.details()
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidInput)
    return [violation.field for violation in error.violations]


async def assert_refused(stub: pb_grpc.GenerationServiceStub, cases: Sequence[tuple[Call, str]]) -> None:
    """Every call is refused for one field while a text runs on."""
    began, done = asyncio.Event(), asyncio.Event()
    running = asyncio.ensure_future(running_text(stub, began, done))
    await began.wait()
    for call, field in cases:
        assert await fields_of(call(stub)) == [field]
    done.set()
    gaps = await running
    assert len(gaps) >= 5 and max(gaps) < LONGEST_GAP_S


def generate(request: pb.GenerateRequest) -> Call:
    return lambda stub: stub.Generate(request).read()


def tokenize(request: pb.TokenizeRequest) -> Call:
    return lambda stub: stub.Tokenize(request)


@pytest.mark.parametrize("field", BY_FIELD)
def test_a_field_out_of_bounds_is_named_and_others_go_on(field: str, tmp_path: Path) -> None:
    names = {id(request): name for request, name in REFUSED}

    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            await assert_refused(stub, [(generate(request), names[id(request)]) for request in BY_FIELD[field]])
    run(test)


MILLION = 10**6
LONG = {
    "text": ("text", generate(pb.GenerateRequest(text="the quick brown fox " * (MILLION // 20)))),
    "one word": ("text", generate(pb.GenerateRequest(text="a" * MILLION))),
    "conversation": ("chat", generate(chat((pb.CHAT_ROLE_USER, "é" * (MILLION // 2))))),
    "messages": ("chat.messages", generate(chat(*[(pb.CHAT_ROLE_USER, "a")] * 100_000))),
    "token ids": ("tokens", generate(pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=range(MILLION))))),
    "text to tokenise": ("text", tokenize(pb.TokenizeRequest(text="12" * (MILLION // 2)))),
    "conversation to tokenise": ("chat", tokenize(pb.TokenizeRequest(
        chat=chat((pb.CHAT_ROLE_USER, " " * MILLION)).chat))),
}


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    tokenizer = Tokenizer.load(prepare_tokenizer("smollm2"))
    tokenizer.prepare()
    return tokenizer


@pytest.mark.parametrize("name", LONG)
def test_a_prompt_of_a_megabyte_is_refused_and_others_go_on(name: str, smollm2: Tokenizer, tmp_path: Path) -> None:
    field, call = LONG[name]

    async def test() -> None:
        async with serving(tmp_path, smollm2) as (stub, _):
            await assert_refused(stub, [(call, field)])
    run(test)


def test_a_prompt_that_has_to_be_tokenised_to_know_it_delays_nobody(smollm2: Tokenizer, tmp_path: Path) -> None:
    text = "the quick brown fox " * 40_000
    positions = len(text) // smollm2.most_bytes_per_token + 1

    async def test() -> None:
        async with serving(tmp_path, smollm2, max_model_len=positions, num_blocks=positions) as (stub, _):
            await assert_refused(stub, [(generate(pb.GenerateRequest(text=text)), "text")])
    run(test)


@pytest.fixture(scope="module")
def constraints(smollm2: Tokenizer) -> Grammars:
    grammars = Grammars(lambda: smollm2, vocab_size=smollm2.vocab_size)
    grammars.prepare()
    return grammars


UNFOLLOWABLE = {
    "regex": ["(", "(a{1000}){1000}", "(" * MILLION],
    "grammar": ["start: nowhere", "x" * MILLION, "start: A\nA: /(.*a.{20})/ & ~/(.*b.{20})/"],
    "json_schema": ['{"type": "nothing"}', "[" * 60_000, " " * MILLION, "{", '{"$ref": "http://127.0.0.1/x"}'],
}


@pytest.mark.parametrize("field", UNFOLLOWABLE)
def test_a_constraint_that_cannot_be_followed_is_refused_and_others_go_on(
    field: str, constraints: Grammars, tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(tmp_path, constraints=constraints) as (stub, _):
            await assert_refused(stub, [
                (generate(pb.GenerateRequest(text="a", **{field: text})), field)  # type: ignore[arg-type]
                for text in UNFOLLOWABLE[field]])
    run(test)


def test_a_constraint_contradicts_a_text_without_end(constraints: Grammars, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, constraints=constraints) as (stub, _):
            request = pb.GenerateRequest(text="a", regex="a", ignore_eos=True)
            await assert_refused(stub, [(generate(request), "ignore_eos")])
    run(test)


def test_ten_thousand_stop_strings_are_refused(tmp_path: Path) -> None:
    stops = [f"stop {number}" for number in range(10_000)]

    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            await assert_refused(stub, [(generate(pb.GenerateRequest(text="a", stop=stops)), "stop")])
    run(test)


def test_an_id_in_use_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            await assert_refused(stub, [(generate(pb.GenerateRequest(text="a", request_id="running")), "request_id")])
    run(test)


def test_a_server_without_a_drafter_refuses_to_draft(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (stub, state):
            state.pairs[0].drafts = False
            assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).max_draft_length == 0
            await assert_refused(stub, [(generate(pb.GenerateRequest(text="a", draft_length=1)), "draft_length")])
    run(test)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{% for %}"])
def test_a_conversation_that_cannot_be_laid_out_is_refused_as_one(template: str | None, tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        byte_level()._backend, eos_token_ids=frozenset(), special_tokens={}, chat_template=template)

    async def test() -> None:
        async with serving(tmp_path, tokenizer) as (stub, _):
            request = chat((pb.CHAT_ROLE_USER, "hi"))
            await assert_refused(stub, [
                (generate(request), "chat"), (tokenize(pb.TokenizeRequest(chat=request.chat)), "chat")])
    run(test)


def test_too_many_texts_are_no_matter_of_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (stub, state):
            others: list[grpc.aio.UnaryStreamCall[Any, Any]] = []

            def asked_when_full(choices: int) -> Call:
                async def call(stub: pb_grpc.GenerationServiceStub) -> object:
                    while len(others) < 7:  # with the running text as many as there may be
                        others.append(stub.Generate(pb.GenerateRequest(text="a", max_tokens=500)))
                    await until(lambda: state.router.active == 8)
                    return await stub.Generate(pb.GenerateRequest(text="a", n=choices)).read()
                return call

            await assert_refused(stub, [(asked_when_full(choices), "n") for choices in (0, 65, 2**32 - 1)])
            for call in others:
                call.cancel()
    run(test)


def test_lone_bytes_are_a_prompt_like_any_other(smollm2: Tokenizer, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, one token each, and the text begins with theirs."""
    lone = [token for token in range(300) if smollm2.decode([token]) == REPLACEMENT]
    prompt = [token for token in lone for _ in range(token % 5 + 1)] + lone[::-1]
    assert len(lone) > 50

    async def test() -> None:
        verifier = FakeVerifier(vocab_size=smollm2.vocab_size, max_model_len=1024, num_blocks=1024)
        async with served(tmp_path, verifier, text_source=lambda: TextStream(smollm2)) as (stub, _, _):
            request = pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=prompt), echo=True, max_tokens=40)
            pieces = [piece async for piece in stub.Generate(request)]
            made = [token for piece in pieces for token in piece.token_ids]
            assert made == continue_text(prompt, 40, Sampling(), smollm2.vocab_size)
            text = "".join(piece.text for piece in pieces)
            assert text == smollm2.decode([*prompt, *made]) and text.count(REPLACEMENT) > 50
            assert list(pieces[0].prompt_token_ids) == prompt
    run(test)


def test_the_largest_numbers_are_what_there_is_room_for(tmp_path: Path) -> None:
    most = 2**32 - 1

    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            request = pb.GenerateRequest(
                text="a" * 500, max_tokens=most, top_k=most, temperature=1e6, top_p=5e-324, min_p=5e-324,
                typical_p=5e-324, seed=2**64 - 1)
            pieces = [piece async for piece in stub.Generate(request)]
            assert sum(len(piece.token_ids) for piece in pieces) == 12
            assert pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
    run(test)


def raw(method: str, content: bytes, directory: Path) -> Call:
    """A call with these bytes for its request."""
    async def call(_stub: object) -> object:
        async with grpc.aio.insecure_channel(f"unix:{directory}/coordinator.sock") as channel:
            if method == "Tokenize":
                return await channel.unary_unary(f"/qspec.v1.GenerationService/{method}")(content)
            return await channel.unary_stream(f"/qspec.v1.GenerationService/{method}")(content).read()
    return call


@pytest.mark.parametrize("content", [
    b"\x0a\x03\xff\xfe\xfd", b"\x0a\x03\xed\xa0\x80", b"\x0a\x01\xc3", b"\x0a\x01a\x4a\x01\x80", b"\x0a\x05a",
    b"\xff" * 9,
], ids=["no UTF-8", "surrogate", "half a character", "stop", "cut off", "no field"])
def test_what_is_no_request_is_refused_as_one(content: bytes, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            await assert_refused(stub, [
                (raw("Generate", content, tmp_path), "request"), (raw("Tokenize", content[:5], tmp_path), "request")])
    run(test)


def test_a_request_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (stub, _):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(pb.GenerateRequest(text="a" * (5 * MILLION))).read()
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await assert_refused(stub, [(generate(pb.GenerateRequest()), "prompt")])
    run(test)
