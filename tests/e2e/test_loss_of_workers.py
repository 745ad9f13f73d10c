"""A worker that dies or hangs costs time, never text; a client that is killed leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.client import (
    REPOSITORY,
    Footprint,
    answers,
    command,
    footprint,
    module_of,
    run_client,
    shared_memory_files,
    wait_until,
)

pytestmark = pytest.mark.timeout(300)
PROMPT = "Tell me a long story about a lighthouse."
OPTIONS = ("--prompt", PROMPT, "--max-tokens", "96", "--draft-length", "3")


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What the client writes when nothing happens."""
    return answers(*OPTIONS)[0]


@contextmanager
def streaming_client(*options: str) -> Iterator[subprocess.Popen[str]]:
    """A client that has begun to write its text."""
    process = subprocess.Popen(
        command(*options), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_some(process: subprocess.Popen[str], characters: int) -> str:
    """The next ``characters`` of the text."""
    assert process.stdout is not None
    return process.stdout.read(characters)


def assert_nothing_left(left: Footprint, shared_before: set[str]) -> None:
    wait_until(lambda: not left.alive(), 20, f"processes end: {left.alive()}")
    assert left.directory is not None
    wait_until(lambda: left.directory is not None and not left.directory.exists(), 5, "the directory is removed")
    assert shared_memory_files() <= shared_before


@pytest.mark.parametrize(
    ("role", "number"),
    [("drafter", signal.SIGKILL), ("drafter", signal.SIGSTOP), ("verifier", signal.SIGKILL)],
    ids=lambda value: value if isinstance(value, str) else signal.Signals(value).name,
)
def test_text_survives_a_worker(undisturbed: dict[str, Any], role: str, number: signal.Signals) -> None:
    shared = shared_memory_files()
    with streaming_client(*OPTIONS) as process:
        text = read_some(process, 40)
        stack = footprint(process)
        os.kill(stack.role(role).pid, number)
        rest, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert (text + rest).rstrip("\n") == undisturbed["text"].rstrip("\n")
    assert_nothing_left(stack, shared)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_nothing_is_left_behind_by_a_client_that_is_ended(number: signal.Signals) -> None:
    shared = shared_memory_files()
    with streaming_client(*OPTIONS) as process:
        read_some(process, 40)
        stack = footprint(process)
        assert {"coordinator", "verifier", "drafter"} <= {module_of(each) for each in stack.processes}
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
        assert "Traceback" not in errors
    assert_nothing_left(stack, shared)


def test_nothing_is_left_behind_by_a_client_that_is_killed_while_loading() -> None:
    shared = shared_memory_files()
    with streaming_client(*OPTIONS) as process:
        wait_until(lambda: len(footprint(process).processes) >= 3, 30, "the workers start")
        stack = footprint(process)
        process.kill()
        process.wait(10)
    assert_nothing_left(stack, shared)


def test_nothing_is_left_behind_by_a_run_that_ends_by_itself(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["usage"]["completion_tokens"] == 96
    done = run_client("--prompt", "Hi", "--max-tokens", "2", "--json")
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) >= {"prompt", "text", "token_ids", "finish_reason", "usage", "speculation"}
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line]
