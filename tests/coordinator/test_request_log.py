"""What the log says of requests, and that no prompt, text or constraint is ever in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.serving import Serving
from qspec.log_format import JsonFormatter, TextFormatter
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.metrics.scraped import scrape
from tests.coordinator.test_service import served
from tests.fakes import FakeDrafter, FakeVerifier

CANARY = "canary-7f3a"


class Log:
    """Everything that was logged, as both formatters write it."""

    def __init__(self) -> None:
        self.json, self.text = io.StringIO(), io.StringIO()

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The objects with this message."""
        found = [json.loads(line) for line in self.json.getvalue().splitlines()]
        return [line for line in found if line["message"] == message]


@pytest.fixture
def log() -> Iterator[Log]:
    log, root = Log(), logging.getLogger()
    handlers: list[logging.Handler] = []
    for stream, formatter in ((log.json, JsonFormatter()), (log.text, TextFormatter())):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handlers.append(handler)
        root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    yield log
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def test_a_text_s_end_is_told_with_its_id_and_figures(tmp_path: Path, log: Log) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with served(tmp_path, verifier, FakeDrafter(verifier)) as (stub, _, _):
            request = pb.GenerateRequest(text="1 2 3", max_tokens=20, draft_length=4, request_id="mine", n=2)
            last = [piece async for piece in stub.Generate(request)][-1]
            assert last.speculation.drafted > 0
    run(test)
    lines = log.lines("request ended")
    assert sorted(line["choice"] for line in lines) == [0, 1]
    for line in lines:
        assert (line["request_id"], line["outcome"], line["logger"]) == ("mine", "length", "qspec.requests")
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 20)
        assert line["drafted"] > line["accepted"] > 0
        assert 0 <= line["queue_s"] <= line["time_to_first_token_s"] <= line["total_s"]
    assert "qspec.requests: request ended request_id=mine client=unix: choice=0 outcome=length" in log.text.getvalue()


def test_a_refusal_is_told_with_its_fields_and_none_of_their_values(tmp_path: Path, log: Log) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, serving, _):
            request = pb.GenerateRequest(text="1 2", max_tokens=0, temperature=-1, request_id="mine")
            with pytest.raises(grpc.aio.AioRpcError):
                [piece async for piece in stub.Generate(request)]
            assert scrape(serving)("qspec_requests_refused_total", reason="invalid_argument") == 1
    run(test)
    (line,) = log.lines("request refused")
    assert (line["request_id"], line["reason"]) == ("mine", "invalid_argument")
    assert line["fields"] == "max_tokens,temperature"


def test_a_call_without_a_key_is_told_and_counted(log: Log) -> None:
    serving = Serving(model="toy")
    serving.telemetry.call_unauthenticated("/qspec.v1.GenerationService/Generate", "ipv4:10.0.0.7:50000")
    assert scrape(serving)("qspec_requests_refused_total", reason="unauthenticated") == 1
    (line,) = log.lines("request refused")
    assert (line["client"], line["method"], line["reason"]) == (
        "ipv4:10.0.0.7", "/qspec.v1.GenerationService/Generate", "unauthenticated")


def test_a_client_that_goes_is_told(tmp_path: Path, log: Log) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.005)) as (stub, _, engine):
            call = stub.Generate(pb.GenerateRequest(text="1 2 3", max_tokens=200, request_id="gone"))
            await call.read()
            call.cancel()
            while engine.active:
                await asyncio.sleep(0.005)
    run(test)
    (line,) = log.lines("request ended")
    assert (line["request_id"], line["outcome"]) == ("gone", "cancelled")
    assert 0 < line["completion_tokens"] < 200


@pytest.mark.parametrize("request_", [
    pb.GenerateRequest(text=f"1 {CANARY}"),  # the tokenizer fails, with the word in its error
    pb.GenerateRequest(text="1 2", stop=[CANARY], max_tokens=4),
    pb.GenerateRequest(text="1 2", stop=[CANARY] * 40),
    pb.GenerateRequest(chat=pb.ChatPrompt(messages=[
        pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=CANARY)]), max_tokens=4),
    pb.GenerateRequest(chat=pb.ChatPrompt(messages=[pb.ChatMessage(content=CANARY)])),
    pb.GenerateRequest(text="1 2", regex=f"({CANARY}"),
    pb.GenerateRequest(text="1 2", json_schema=f'{{"type": "{CANARY}"}}'),
    pb.GenerateRequest(text="1 2", request_id=f"not an id\n{CANARY}"),
    pb.GenerateRequest(text="1 2", max_tokens=200, timeout_s=0.05, stop=[CANARY]),
], ids=["prompt", "stop", "stops", "chat", "role", "regex", "schema", "id", "deadline"])
def test_no_words_of_a_request_are_logged(request_: pb.GenerateRequest, tmp_path: Path, log: Log) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.002)) as (stub, _, _):
            with suppress(grpc.aio.AioRpcError):
                [piece async for piece in stub.Generate(request_)]
            await asyncio.sleep(0.02)
    run(test)
    assert log.lines("request ended") or log.lines("request refused")
    assert CANARY not in log.json.getvalue() + log.text.getvalue()
