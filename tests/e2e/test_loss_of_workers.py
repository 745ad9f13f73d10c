"""A worker that dies or hangs costs time, never text; a client that is killed leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import (
    Footprint,
    StreamingClient,
    answers,
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
def test_text_survives_a_worker(
    undisturbed: dict[str, Any], role: str, number: signal.Signals, tmp_path: Path
) -> None:
    shared = shared_memory_files()
    with StreamingClient(tmp_path, *OPTIONS) as client:
        text = client.read(40)
        stack = footprint(client.process)
        os.kill(stack.role(role).pid, number)
        text += client.read()
        assert client.process.wait(30) == 0, client.errors()
        assert text.rstrip("\n") == undisturbed["text"].rstrip("\n")
    assert_nothing_left(stack, shared)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_nothing_is_left_behind_by_a_client_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    shared = shared_memory_files()
    with StreamingClient(tmp_path, *OPTIONS) as client:
        client.read(40)
        stack = footprint(client.process)
        assert {"coordinator", "verifier", "drafter"} <= {module_of(each) for each in stack.processes}
        client.process.send_signal(number)
        assert client.process.wait(30) == (-number if number is signal.SIGKILL else 128 + number)
        assert "Traceback" not in client.errors()
    assert_nothing_left(stack, shared)


def test_nothing_is_left_behind_by_a_client_that_is_killed_while_loading(tmp_path: Path) -> None:
    shared = shared_memory_files()
    with StreamingClient(tmp_path, *OPTIONS) as client:
        wait_until(lambda: len(footprint(client.process).processes) >= 3, 30, "the workers start")
        stack = footprint(client.process)
        client.process.kill()
        client.process.wait(10)
    assert_nothing_left(stack, shared)


def test_nothing_is_left_behind_by_a_run_that_ends_by_itself(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["usage"]["completion_tokens"] == 96
    done = run_client("--prompt", "Hi", "--max-tokens", "2", "--json")
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) >= {"prompt", "text", "token_ids", "finish_reason", "usage", "speculation"}
    assert not [line for line in done.stderr.splitlines() if "Traceback" in line]
