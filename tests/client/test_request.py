"""Requests and what the wire cannot hold; when to ask again; what importing the client costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import fields
from typing import Any

import pytest

from qspec.client import DeadlineExceeded, InvalidInput, Message, QueueFull, RetryPolicy, SlowReader, Unavailable
from qspec.client import deltas as deltas_module
from qspec.client.connection import make_connection
from qspec.client.request import GenerateOptions, generate_request, tokenize_request
from qspec.client.retry import Attempts
from qspec.v1 import generation_pb2 as pb


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    prompts = {"text", "chat", "tokens"}
    assert GenerateOptions.__annotations__.keys() <= set(pb.GenerateRequest.DESCRIPTOR.fields_by_name) - prompts
    known = {  # of the version that this client was written for: a newer proto file may have more
        "max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "draft_length", "min_p", "typical_p",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "stop_token_ids",
        "ignore_eos", "logprobs", "prompt_logprobs", "n", "echo", "json_schema", "regex", "grammar", "request_id",
        "priority", "timeout_s"}
    assert known <= GenerateOptions.__annotations__.keys()


@pytest.mark.parametrize(("ours", "message"), [
    (deltas_module.Usage, pb.Usage), (deltas_module.Speculation, pb.SpeculationStats)])
def test_values_have_the_names_of_the_messages(ours: Any, message: Any) -> None:
    names = {"round_total_s" if each.name == "round_s" else each.name for each in fields(ours)}
    assert names <= set(message.DESCRIPTOR.fields_by_name)


def test_prompts_and_options_become_a_request() -> None:
    options: dict[str, Any] = {"logit_bias": {5: 1.5}, "stop": ["a"], "max_tokens": 3, "regex": "x", "echo": True}
    assert generate_request("hi", options) == pb.GenerateRequest(
        text="hi", logit_bias=[pb.LogitBias(token_id=5, bias=1.5)], stop=["a"], max_tokens=3, regex="x", echo=True)
    assert list(generate_request([1, 2], {}).tokens.token_ids) == [1, 2]
    chat = [Message("system", "be brief"), Message("user", "hi")]
    assert [(m.role, m.content) for m in generate_request(chat, {}).chat.messages] == [
        (pb.CHAT_ROLE_SYSTEM, "be brief"), (pb.CHAT_ROLE_USER, "hi")]
    assert tokenize_request(chat).chat == generate_request(chat, {}).chat
    given = pb.GenerateRequest(text="a")
    assert generate_request(given, {"seed": 1}).seed == 1 and not given.HasField("seed")


@pytest.mark.parametrize(("prompt", "options", "names"), [
    ("a", {"max_tokens": -1, "seed": 2**64, "temperature": "hot"}, ["max_tokens", "seed", "temperature"]),
    ("a", {"stop": "abc"}, ["stop"]), ("a", {"logit_bias": [5]}, ["logit_bias"]), ([], {}, ["prompt"]),
    ([1, -1], {}, ["prompt"]), ([Message("robot", "a")], {}, ["prompt"]), (5, {}, ["prompt"]),  # type: ignore[arg-type]
])
def test_what_the_wire_cannot_hold_is_refused_by_field(prompt: Any, options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(InvalidInput) as raised:
        generate_request(prompt, options)
    assert [each.field for each in raised.value.field_violations] == names


def test_an_option_that_there_is_not_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="no option 'max_token'"):
        generate_request("a", {"max_token": 3})


def test_only_errors_with_a_time_are_asked_again_about() -> None:
    now = [100.0]
    attempts = Attempts(RetryPolicy(attempts=4, longest_wait_s=5.0, jitter=0.0), 10.0, lambda: now[0])
    assert attempts.left_s() == 10.0
    for error in (QueueFull("full"), SlowReader("slow"), InvalidInput.field("x", "y"), Unavailable("no", 6.0)):
        assert attempts.pause_s(error) is None
    assert attempts.pause_s(QueueFull("full", 2.0)) == 2.0
    assert attempts.pause_s(Unavailable("loading", 3.0)) == 3.0
    now[0] += 8
    assert attempts.pause_s(QueueFull("full", 2.0)) is None  # the deadline comes first
    assert attempts.pause_s(QueueFull("full", 1.0)) == 1.0
    assert attempts.pause_s(QueueFull("full", 0.1)) is None  # the fifth call
    now[0] += 3
    with pytest.raises(DeadlineExceeded, match="10 s passed before the server took the request"):
        attempts.left_s()


def test_pauses_are_spread() -> None:
    attempts = Attempts(RetryPolicy(attempts=None, jitter=0.5), None)
    pauses = {attempts.pause_s(QueueFull("full", 2.0)) for _ in range(50)}
    assert len(pauses) > 40 and all(pause is not None and 2.0 <= pause <= 3.0 for pause in pauses)


@pytest.mark.parametrize(("address", "refused"), [
    ("localhost:1", False), ("127.0.0.1:1", False), ("127.8.0.1:1", False), ("[::1]:1", False), ("unix:/tmp/s", False),
    ("127.evil.example:1", True), ("10.0.0.1:1", True), ("dns:///qspec:1", True), ("[2001:db8::1]:1", True),
])
def test_a_key_stays_on_this_host_unless_told(address: str, refused: bool) -> None:
    make_connection(address, tls=None, api_key="k" * 20, client_id=None, insecure=True)
    try:
        make_connection(address, tls=None, api_key="k" * 20, client_id=None, insecure=False)
    except InvalidInput as error:
        assert refused and "api_key: would go to" in str(error) and "k" * 20 not in str(error)
    else:
        assert not refused


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown() -> None:
    for key in ("", "with space", "line\nbreak", "ünïcode"):
        with pytest.raises(InvalidInput, match="api_key: must be visible ASCII characters without spaces$"):
            make_connection("unix:/tmp/s", tls=None, api_key=key, client_id=None, insecure=False)


def test_importing_is_light_and_quick() -> None:
    code = ("import sys, time, json\nbegun = time.perf_counter()\nimport qspec.client\n"
            "print(json.dumps([time.perf_counter() - begun, sorted(sys.modules)]))")
    seconds = []
    for _ in range(5):  # the machine may be busy: the best of some
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        took, modules = json.loads(done.stdout)
        seconds.append(took)
        if took < 0.5:
            break
        time.sleep(0.5)
    assert min(seconds) < 0.5
    packages = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    of_grpc = {"grpc", "grpc_status", "google", "typing_extensions", "cython_runtime"}
    if_there = {"grpc_health", "grpc_reflection", "grpc_tools"}  # which grpc itself imports where they are installed
    assert {name for name in packages if not name.startswith("_")} - SITE <= {"qspec"} | of_grpc | if_there
    ours = {name for name in modules if name.startswith("qspec.")}
    assert ours <= {name for name in ours if name.startswith(("qspec.client", "qspec.v1", "qspec.rpc"))} | {
        "qspec.errors", "qspec.socket_path"}


SITE = {name.partition(".")[0] for name in json.loads(subprocess.run(
    [sys.executable, "-c", "import json, sys; print(json.dumps(sorted(sys.modules)))"], capture_output=True, text=True,
    timeout=60, check=True).stdout)}
"""What an interpreter of this environment has loaded before anything is imported (editable installations)."""
