"""Workers that die or stand still in the middle of a call, while many texts are made: no text changes, none breaks.

A worker stops itself at a point that the test names (``tests.e2e.halting_worker``), so that it is certainly in the
middle; then it is killed, left there, or let go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, shared_memory_files, wait_until, wait_until_serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(240)
LONG = "the quick brown fox jumps over the lazy dog " * 2
SCHEMA = (
    '{"type": "object", "properties": {"a": {"enum": ["the", "fox"]}, "b": {"type": "integer", "minimum": 0, '
    '"maximum": 999}}, "required": ["a", "b"], "additionalProperties": false, "x-guidance": '
    '{"whitespace_flexible": false}}'
)
LOAD: tuple[dict[str, Any], ...] = (
    {"text": "the lazy"},
    {"text": LONG},
    {"text": "the quick", "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"text": "brown fox", "temperature": 1.2, "seed": 5, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"text": LONG + "!", "temperature": 1.5, "seed": 6, "typical_p": 0.9, "presence_penalty": 0.5},
    {"text": "jumps", "temperature": 0.8, "seed": 7, "logit_bias": [pb.LogitBias(token_id=70, bias=2.0)]},
    {"text": "a", "regex": "[a-f]{30,40}(-[0-9]{3}){1,2}"},
    {"text": "b", "json_schema": SCHEMA, "temperature": 1.5, "seed": 8},
    {"text": "c", "temperature": 1.5, "seed": 9, "n": 2},
    {"text": "the dog is lazy", "min_tokens": 10},
)
"""Greedy and seeded, with filters, penalties and constraints, and prompts of several chunks."""
Text = list[tuple[str, tuple[int, ...], int]]


class Server:
    """A coordinator and its workers, as processes."""

    def __init__(self, process: subprocess.Popen[str], stub: pb_grpc.GenerationServiceStub, halts: Path) -> None:
        self.process, self.stub, self._halts = process, stub, halts

    def text(self, fields: dict[str, Any], draft_length: int) -> Text:
        """Text, tokens and finish reason of each choice."""
        request = pb.GenerateRequest(
            max_tokens=60, draft_length=draft_length, ignore_eos=not {"regex", "json_schema"} & fields.keys(), **fields)
        made: Text = [("", (), 0)] * (request.n or 1)
        for piece in self.stub.Generate(request):
            text, tokens, _ = made[piece.choice]
            made[piece.choice] = text + piece.text, tokens + tuple(piece.token_ids), piece.finish_reason
        return made

    @contextlib.contextmanager
    def load(self) -> Iterator[list[Future[Text]]]:
        """All texts at once, drafted, twice."""
        with ThreadPoolExecutor(2 * len(LOAD)) as pool:
            yield [pool.submit(self.text, fields, 3) for fields in LOAD * 2]

    def halt_at(self, where: str) -> None:
        """The next worker that comes to this point stops."""
        (self._halts / where).touch()

    def halted(self) -> psutil.Process:
        """The worker that has stopped."""
        def stopped() -> list[psutil.Process]:
            return [one for one in self.workers() if one.status() == psutil.STATUS_STOPPED]

        wait_until(lambda: bool(stopped()), 30, "a worker stops")
        assert not list(self._halts.iterdir())
        return stopped()[0]

    def workers(self) -> list[psutil.Process]:
        """The workers that there are."""
        return psutil.Process(self.process.pid).children()

    def info(self) -> pb.GetServerInfoResponse:
        """What the server says of itself."""
        answer: pb.GetServerInfoResponse = self.stub.GetServerInfo(pb.GetServerInfoRequest())
        return answer

    def wait_until_whole(self) -> None:
        """Every pair serves and drafts."""
        def whole() -> bool:
            return all(pair.state == pb.PAIR_STATE_SERVING and pair.draft_method for pair in self.info().pairs)

        wait_until(whole, 60, "all workers are back")


@pytest.fixture(scope="module", params=[1, 2], ids=["one pair", "two pairs"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server over a tiny model; nothing of it may be left behind."""
    directory = tmp_path_factory.mktemp("loss")
    halts, model = directory / "halt", directory / "tiny"
    halts.mkdir()
    write_tiny_model(model, "llama")
    shared = shared_memory_files()
    address = f"unix:{directory}/c.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.halting_coordinator", "--listen", address, "--model", str(model),
         "--draft-quantization", "w8a8", "--verify-quantization", "none:fp32", "--threads", "1", "--max-slots", "8",
         "--max-batch-rows", "32", "--kv-tokens", "1024", "--block-size", "16", "--pairs", str(request.param)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "QSPEC_HALT": str(halts), "QSPEC_CACHE_DIR": str(directory / "cache")},
    )
    ours = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    try:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            wait_until_serving(stub, process)
            runtime = {Path(a.split("=", 1)[1]) for child in ours.children() for a in child.cmdline()
                       if a.startswith("--runtime-dir=")}
            yield Server(process, stub, halts)
            children = ours.children(recursive=True)
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in errors, errors
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not any(path.exists() for path in runtime) and shared_memory_files() <= shared
    finally:
        for child in ours.children(recursive=True) if process.poll() is None else children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> list[Text]:
    """The texts, one at a time and without drafts."""
    return [server.text(fields, 0) for fields in LOAD]


@pytest.mark.parametrize(("where", "role"), [("prefill", "verifier"), ("verify", "verifier"), ("draft", "drafter")])
def test_a_worker_is_killed_in_the_middle(server: Server, undisturbed: list[Text], where: str, role: str) -> None:
    before = server.info()
    server.halt_at(where)
    with server.load() as texts:
        worker = server.halted()
        assert f"{role}.sock" in " ".join(worker.cmdline())
        assert not all(text.done() for text in texts)
        worker.kill()
        assert [text.result(60) for text in texts] == undisturbed * 2
    server.wait_until_whole()
    after = server.info()
    assert after.verifier_restarts - before.verifier_restarts == (role == "verifier")
    assert after.drafter_restarts - before.drafter_restarts == (role == "drafter")

    def idle() -> bool:
        now = server.info()
        return (now.running, now.waiting, now.free_blocks) == (0, 0, now.num_blocks)

    wait_until(idle, 10, "slots and blocks are free")  # the last release goes with a batch of its own


def test_a_drafter_stands_still_for_a_moment_in_the_middle_of_a_round(
    server: Server, undisturbed: list[Text]
) -> None:
    before = server.info().drafter_restarts
    server.halt_at("draft")
    with server.load() as texts:
        worker = server.halted()
        time.sleep(0.5)
        assert not all(text.done() for text in texts)
        worker.send_signal(signal.SIGCONT)
        assert [text.result(60) for text in texts] == undisturbed * 2
    assert server.info().drafter_restarts == before, "a moment is no loss"


def test_a_drafter_that_stands_still_is_replaced(server: Server, undisturbed: list[Text]) -> None:
    before = server.info().drafter_restarts
    server.halt_at("draft")
    with server.load() as texts:
        worker = server.halted()
        assert [text.result(60) for text in texts] == undisturbed * 2
    wait_until(lambda: not worker.is_running(), 20, "it is killed")
    server.wait_until_whole()
    assert server.info().drafter_restarts == before + 1
    with server.load() as texts:
        assert [text.result(60) for text in texts] == undisturbed * 2


def test_a_drafter_of_somebody_else_s_wakes_up_late_and_spoils_nothing(tmp_path: Path) -> None:
    """It was given up in the middle of a draft, and finishes that while rounds go on without it."""
    halts, model, run = tmp_path / "halt", tmp_path / "tiny", tmp_path / "run"
    halts.mkdir()
    run.mkdir(mode=0o700)
    write_tiny_model(model, "llama")
    environment = {**os.environ, "QSPEC_HALT": str(halts), "QSPEC_CACHE_DIR": str(tmp_path / "cache")}
    options = [
        "--model", str(model), "--draft-quantization", "w8a8", "--verify-quantization", "none:fp32", "--threads", "1",
        "--max-slots", "8", "--max-batch-rows", "32", "--kv-tokens", "1024", "--block-size", "16"]
    address = f"unix:{tmp_path}/c.sock"
    workers = [f"unix:{run}/verifier.sock", f"unix:{run}/drafter.sock"]
    with contextlib.ExitStack() as cleanup:
        def start(module: str, *arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, *options], cwd=REPOSITORY, env=environment, text=True)
            cleanup.callback(process.wait)
            cleanup.callback(process.kill)
            return process

        for worker in workers:
            start("tests.e2e.halting_worker", f"--listen={worker}", f"--runtime-dir={run}")
        coordinator = start(
            "tests.e2e.halting_coordinator", "--listen", address, "--verifier", workers[0], "--drafter", workers[1])
        stub = pb_grpc.GenerationServiceStub(cleanup.enter_context(grpc.insecure_channel(address)))
        wait_until_serving(stub, coordinator)
        server = Server(coordinator, stub, halts)
        expected = [server.text(fields, 0) for fields in LOAD] * 2
        drafter = psutil.Process(next(
            one.pid for one in psutil.Process().children() if workers[1] in " ".join(one.cmdline())
            and "halting_worker" in " ".join(one.cmdline())))
        server.halt_at("draft")
        with server.load() as texts:
            wait_until(lambda: drafter.status() == psutil.STATUS_STOPPED, 30, "the drafter stops")
            wait_until(lambda: not server.info().draft_method, 30, "the drafter is given up")
            with server.load() as more:
                drafter.send_signal(signal.SIGCONT)
                assert [text.result(60) for text in texts] == expected
                assert [text.result(60) for text in more] == expected
        server.wait_until_whole()
        assert drafter.is_running() and server.info().verifier_restarts == 0
        with server.load() as texts:
            assert [text.result(60) for text in texts] == expected
