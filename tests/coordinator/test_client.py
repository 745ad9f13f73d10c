"""The client as a user runs it, against a real socket with fake workers behind it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.drain import drain
from qspec.interfaces import Sampling
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.test_service import run, served, until
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text

PROMPTS = ["1 2", "3 4", "5 6", "7 8", "9 10"]


async def client(directory: Path, *arguments: str) -> tuple[int, str, str]:
    process = await start(directory, *arguments)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def start(directory: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coordinator.client", f"--address=unix:{directory}/coordinator.sock", "--raw", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def expected(prompt: str, count: int) -> list[int]:
    return continue_text([int(word) for word in prompt.split()], count, Sampling(), 97)


def text(tokens: list[int]) -> str:
    return "".join(f"{token}," for token in tokens)


def test_one_prompt_is_streamed_and_summed_up(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with served(tmp_path, verifier, FakeDrafter(verifier)):
            code, out, err = await client(tmp_path, "--prompt=1 2", "--max-tokens=20", "--draft-length=4")
            assert (code, out) == (0, text(expected("1 2", 20)) + "\n")
            assert err.count("\n") == 1
            for part in ("tokens/s", "acceptance", "mean accepted length", "time to first token", "20 tokens"):
                assert part in err
    run(test)


def test_json_is_one_object_per_prompt_in_order_and_nothing_else(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_slots=2, delay_s=0.001)
        async with served(tmp_path, verifier, FakeDrafter(verifier), max_active=2):
            code, out, err = await client(
                tmp_path, "--json", "--max-tokens=12", "--draft-length=2", *(f"--prompt={p}" for p in PROMPTS))
            assert (code, err) == (0, "")
            objects = [json.loads(line) for line in out.splitlines()]
            assert [o["prompt"] for o in objects] == PROMPTS
            for o in objects:
                assert o["token_ids"] == expected(o["prompt"], 12) and o["text"] == text(o["token_ids"])
                assert o["finish_reason"] == "length"
                assert o["usage"].keys() >= {
                    "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "tokens_per_second",
                    "time_to_first_token_s"}
                stats = o["speculation"]
                assert stats["acceptance_rate"] == stats["accepted"] / stats["drafted"] > 0
                assert stats["mean_accepted_length"] == stats["accepted"] / stats["rounds"]
    run(test)


def test_several_prompts_are_printed_as_blocks(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.001)):
            code, out, err = await client(tmp_path, "--max-tokens=6", *(f"--prompt={p}" for p in PROMPTS[:2]))
            assert code == 0
            assert out == "".join(
                f"[{i}/2] {p}\n{text(expected(p, 6))}\n\n" for i, p in enumerate(PROMPTS[:2], 1))
            assert [line[:5] for line in err.splitlines()] == ["[1/2]", "[2/2]"] and "no speculation" in err
    run(test)


def test_several_texts_of_each_prompt_come_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.001)):
            code, out, err = await client(
                tmp_path, "--json", "--n=3", "--echo", "--max-tokens=6", "--temperature=1", "--seed=4",
                "--logprobs=2", "--prompt-logprobs=0", *(f"--prompt={p}" for p in PROMPTS[:2]))
            assert (code, err) == (0, "")
            objects = [json.loads(line) for line in out.splitlines()]
            assert [(o["prompt"], o["choice"]) for o in objects] == [(p, n) for p in PROMPTS[:2] for n in range(3)]
            for o in objects:
                assert o["text"].endswith(text(o["token_ids"])) and o["text"] != text(o["token_ids"])
                assert [(len(each["top"]), each["logprob"]) for each in o["logprobs"]] == [
                    (2, -(token + 1) / 8) for token in o["token_ids"]]
                assert ("prompt_logprobs" in o) == (o["choice"] == 0)
            assert len({tuple(o["token_ids"]) for o in objects}) == 6
            code, out, err = await client(tmp_path, "--n=2", "--prompt=1 2", "--max-tokens=300")
            assert (code, out.count("[1/2]"), out.count("[2/2]")) == (0, 1, 1)
            code, out, err = await client(tmp_path, "--n=9", "--prompt=1 2")
            assert code == 2 and "--n: this server has room for 8 texts at once, got 9" in err
    run(test)


def test_over_long_prompt_is_one_line_and_the_others_still_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()):
            long = " ".join(["1"] * 300)
            code, out, err = await client(tmp_path, f"--prompt={long}")
            assert (code, out) == (2, "") and err.count("\n") == 1
            assert err.startswith("error: --prompt: is 300 tokens long, and a sequence holds 256")
            code, out, err = await client(tmp_path, "--json", f"--prompt={long}", "--prompt=1 2", "--max-tokens=3")
            assert code == 2
            first, second = map(json.loads, out.splitlines())
            assert "300 tokens" in first["error"] and second["token_ids"] == expected("1 2", 3)
    run(test)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_in_one_line_and_frees_the_slot(number: signal.Signals, code: int, tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02)) as (_, _, engine):
            process = await start(tmp_path, "--prompt=1 2", "--max-tokens=250")
            assert process.stdout is not None and process.stderr is not None
            await process.stdout.read(1)
            process.send_signal(number)
            await process.stdout.read()
            error = (await process.stderr.read()).decode()
            assert await process.wait() == code
            assert len(error.split("\n")) <= 3 and "Traceback" not in error
            while engine.running:
                await asyncio.sleep(0.01)
    run(test)


def test_reader_that_leaves_early_ends_it_quietly(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02)):
            process = await start(tmp_path, "--prompt=1 2", "--max-tokens=250")
            assert process.stdout is not None and process.stderr is not None
            await process.stdout.read(1)
            process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            error = (await process.stderr.read()).decode()
            assert await process.wait() == 128 + signal.SIGPIPE and error == ""
    run(test)


def test_deadline_is_one_line(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02)):
            code, _, err = await client(tmp_path, "--json", "--prompt=1 2", "--max-tokens=250", "--deadline=0.5")
            assert code == 1 and err.count("\n") == 1
            assert err.startswith("error: the request's deadline passed after ") and "of at most 250 tokens" in err
    run(test)


def test_full_server_is_asked_again_when_it_said(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.01), max_active=1) as (stub, _, engine):
            holder = stub.Generate(pb.GenerateRequest(text="7 8", max_tokens=120))
            await holder.read()
            code, out, err = await client(tmp_path, "--prompt=1 2", "--max-tokens=5", "--priority=7")
            assert (code, out) == (0, text(expected("1 2", 5)) + "\n") and err.count("\n") == 1
            holder.cancel()
            await until(lambda: engine.active == 0)
    run(test)


def test_server_that_drains_is_one_line(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02)) as (_, serving, _):
            process = await start(tmp_path, "--prompt=1 2", "--max-tokens=250")
            assert process.stdout is not None and process.stderr is not None
            await process.stdout.read(1)
            await drain(serving, 0.1)
            error = (await process.stderr.read()).decode()
            assert await process.wait() == 1
            assert error == "error: the server is shutting down and did not finish this request: ask again\n"
    run(test)


def test_nobody_listens(tmp_path: Path) -> None:
    async def test() -> None:
        code, out, err = await client(tmp_path, "--prompt=1")
        assert (code, out) == (1, "") and err.count("\n") == 1
        assert "nobody answers at unix:" in err and "python -m coordinator --listen" in err
    run(test)


def test_server_that_goes_away_is_one_line(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02)) as (_, _, engine):
            process = await start(tmp_path, "--prompt=1 2", "--max-tokens=250")
            assert process.stdout is not None and process.stderr is not None
            await process.stdout.read(1)
            await asyncio.to_thread(engine.close)
            error = (await process.stderr.read()).decode()
            assert await process.wait() == 1
            assert error == "error: the server is shutting down\n"
    run(test)


@pytest.mark.parametrize("module", ["coordinator.client.main", "coordinator.program", "coordinator.__main__"])
def test_imports_no_tensor_library(module: str) -> None:
    slow = {"torch", "transformers", "gguf", "accelerate"}
    check = f"import sys, {module}; sys.exit(' '.join({slow} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
