"""The coordinator's program and the private stack, as processes: what they refuse, and that they leave nothing behind.

Workers that somebody else runs stand in for a model: fakes behind the real servicers.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from coordinator.supervisor import ChildProcess
from coordinator.worker import Worker
from qspec.device import has_driver
from qspec.errors import InvalidInput, QspecError
from qspec.rpc.health import is_serving
from qspec.v1 import generation_pb2, generation_pb2_grpc
from tests.fakes import FakeDrafter
from tests.served import served_drafter


def coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "nonsense"), "listen: 'nonsense' is no address"),
        (("--listen", "unix:/does/not/exist/s"), "listen: the directory /does/not/exist does not exist"),
        (("--listen", "127.0.0.1:0", "--draft-quantization", "int3"), "draft_quantization: unknown method"),
        (("--listen", "127.0.0.1:0", "--kv-tokens", "0"), "kv_tokens: must be at least 1"),
        (("--listen", "127.0.0.1:0", "--max-waiting", "-1"), "max_waiting: must be at least 0"),
        (("--listen", "127.0.0.1:0", "--max-buffered-tokens", "0", "--grace", "nan"),
         "max_buffered_tokens: must be at least 1, got 0; grace: must be a number of seconds from 0 on, got nan"),
        (("--listen", "127.0.0.1:0", "--pairs", "0"), "pairs: must be from 1 to 64, got 0"),
        (("--listen", "127.0.0.1:0", "--pairs", "2", "--verifier", "unix:/v"), "pairs: is for workers of the server's"),
        (("--listen", "127.0.0.1:0", "--pairs-file", "/does/not/exist"), "pairs_file: cannot read /does/not/exist"),
        (("--listen", "127.0.0.1:0", "--pairs-file", "x", "--pairs", "2"), "pairs_file: names all pairs; leave out"),
        (("--listen", "0.0.0.0:0"), "listen: other hosts can reach 0.0.0.0:0, and would in plain text: give"),
        (("--listen", "127.0.0.1:0", "--api-keys-file", "/does/not/exist"),
         "api_keys_file: /does/not/exist cannot be read: No such file or directory"),
        (("--listen", "127.0.0.1:0", "--tls-cert", "/a", "--tls-key", "/b"), "tls_cert: /a cannot be read"),
    ],
)
def test_refusal_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = coordinator(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_another_users_socket_directory_is_refused_before_a_worker_is_started(tmp_path: Path) -> None:
    foreign = Path("/")
    if os.geteuid() == 0:
        os.chown(foreign := tmp_path, 12345, 12345)
    done = coordinator("--listen=127.0.0.1:0", f"--runtime-dir={foreign}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: runtime_dir: {foreign} belongs to uid ")


@pytest.mark.parametrize("option", ["listen", "health_listen"])
def test_an_occupied_port_is_refused_before_a_worker_is_started(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        listen = {"listen": "127.0.0.1:0", option: address}
        done = coordinator(*(f"--{name.replace('_', '-')}={value}" for name, value in listen.items()))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {option}: cannot listen at {address}: in use, or not an address of this host\n"


@pytest.mark.skipif(has_driver(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line_and_nothing_is_said_of_sharing_it() -> None:
    done = coordinator("--listen=127.0.0.1:0", "--device=cuda", "--draft-quantization=fp8")
    assert done.returncode == 2
    *stages, error = done.stderr.splitlines()
    assert error == "error: device: torch sees no NVIDIA GPU"
    assert not any("MPS" in stage or "turns" in stage for stage in stages)


def test_broken_lifeline_ends_a_coordinator_and_removes_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "runtime"
    child = ChildProcess(
        "coordinator", "coordinator",
        [f"--listen=unix:{directory}/c.sock", f"--runtime-dir={directory}",
         f"--verifier-address=unix:{tmp_path}/v.sock", f"--drafter-address=unix:{tmp_path}/d.sock"], lambda: None)
    deadline = time.monotonic() + 20
    while not (directory / "c.sock").exists():
        assert time.monotonic() < deadline and not child.ended
        time.sleep(0.02)
    os.close(child._lifeline)
    child._lifeline = -1
    assert child.wait(5)
    assert not directory.exists()
    child.close(0)


def test_coordinator_waits_for_workers_and_ends_when_told(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator", f"--listen=unix:{tmp_path}/c.sock",
         f"--verifier-address=unix:{tmp_path}/v.sock", f"--drafter-address=unix:{tmp_path}/d.sock"],
        stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "c.sock").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (0, "")


def test_coordinator_waits_for_a_model_and_ends_when_told(tmp_path: Path) -> None:
    told = f"waiting for the model, at most 60 s: {tmp_path}/none.gguf does not exist"
    with subprocess.Popen(
        [sys.executable, "-m", "coordinator", f"--listen=unix:{tmp_path}/c.sock", f"--model={tmp_path}/none.gguf",
         "--wait-for-model=60"], stderr=subprocess.PIPE, text=True,
    ) as process:
        try:
            assert process.stderr is not None and process.stderr.readline() == f"{told}\n"
            assert not is_serving(f"unix:{tmp_path}/c.sock")
            with grpc.insecure_channel(f"unix:{tmp_path}/c.sock") as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Tokenize(generation_pb2.TokenizeRequest(text="x"), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert f"the server is not ready yet ({told})" in caught.value.details()
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=20)
            assert (process.returncode, error) == (0, "")
        finally:
            process.kill()


def test_child_tells_its_stages_and_its_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_VERIFIER", "refuse")
    child = ChildProcess(
        "verifier", "tests.coordinator.fake_process",
        [f"--listen=unix:{tmp_path}/verifier.sock", f"--runtime-dir={tmp_path}"], lambda: None)
    assert child.wait(30)
    assert (child.stage.text, child.stage.fraction, child.ready) == ("loading", 0.5, None)
    error = child.failure()
    assert isinstance(error, InvalidInput) and error.violations[0].field == "model"
    child.close(0)


def test_program_that_does_not_exist_is_an_error() -> None:
    child = ChildProcess("verifier", "no.such.module", [], lambda: None)
    assert child.wait(30)
    assert str(child.failure()) == "the verifier ended unexpectedly with exit code 1"
    child.close(0)


def test_replacements_wait_longer_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("coordinator.worker.time.monotonic", lambda: now[0])
    worker = Worker("drafter", "no.such.module", "unix:/does/not/exist", [], lambda: None)
    delays = []
    for _ in range(5):
        worker.discard()
        delays.append(worker._not_before - now[0])
    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0] and not worker.given_up
    worker.discard()
    assert worker.given_up
    worker = Worker("drafter", "no.such.module", "unix:/does/not/exist", [], lambda: None)
    for _ in range(20):  # each of them held for longer than a minute
        worker.mark_attached()
        now[0] += 61
        worker.discard()
    assert worker.restarts == 20 and not worker.given_up


def test_is_serving(tmp_path: Path) -> None:
    assert not is_serving(f"unix:{tmp_path}/drafter.sock", timeout_s=0.2)
    with served_drafter(FakeDrafter, tmp_path) as address:
        deadline = time.monotonic() + 5  # gRPC does not connect again at once after a failure
        while not is_serving(address):
            assert time.monotonic() < deadline


def test_error_of_a_child_is_a_qspec_error() -> None:
    with pytest.raises(QspecError, match="cannot start the x"):
        try:
            executable, sys.executable = sys.executable, "/does/not/exist"
            ChildProcess("x", "y", [], lambda: None)
        finally:
            sys.executable = executable
