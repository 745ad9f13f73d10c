"""The commands that the README shows, as a user types them, and what bad input answers."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, answers, run_client, wait_until_serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(420)


def test_make_run_answers_the_prompt() -> None:
    done = subprocess.run(
        ["make", "run", "PROMPT=Why is the sky blue?", "ARGS=--max-tokens 24"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "sky" in done.stdout
    speculation = r"(acceptance \d+%.*|no speculation)"  # where a busy machine made drafts look dear
    assert re.search(rf"[\d.]+ tokens/s, {speculation}, time to first token [\d.]+ s", done.stderr)
    assert re.search(r"^auto: \S+ drafting for none:fp(16|32), ", done.stderr, re.MULTILINE)
    assert re.search(r"MB\s+shared\s+weights fp", done.stderr)


def test_json_has_what_the_readme_says() -> None:
    (answer,) = answers("--prompt", "Name three colours.", "--max-tokens", "12", "--stop", "zebra")
    assert answer["prompt"] == "Name three colours."
    assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"] <= 12
    assert set(answer["usage"]) >= {"prompt_tokens", "completion_tokens", "tokens_per_second", "time_to_first_token_s"}
    assert set(answer["speculation"]) >= {"rounds", "drafted", "accepted", "accepted_per_position"}
    assert answer["finish_reason"] in {"length", "end_of_sequence"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", ""], "prompt"),
        (["--prompt", "x", "--max-tokens", "0"], "max-tokens"),
        (["--prompt", "x", "--max-tokens", "-3"], "max-tokens"),
        (["--prompt", "x", "--temperature", "nan"], "temperature"),
        (["--prompt", "x", "--top-p", "0"], "top-p"),
        (["--prompt", "x", "--top-p", "1.5"], "top-p"),
        (["--prompt", "x", "--stop", ""], "stop"),
        (["--prompt", "x", "--model", "no-such-model-anywhere/at-all"], "model"),
        (["--prompt", "x", "--draft-quantization", "int3"], "draft.quantization"),
        (["--prompt", "x", "--verify-quantization", "fp3"], "verify.quantization"),
        (["--prompt", "x", "--draft-length", "many"], "draft-length"),
        (["--prompt", "x", "--draft-overrides", "lm_head"], "draft-overrides: 'lm_head' is not GLOB=METHOD"),
        (["--prompt", "x", "--verify-overrides", "lm_head=int3"], "verify-overrides: unknown method"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(arguments: list[str], named: str) -> None:
    done = run_client(*arguments, timeout=90)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert re.search(named, lines[0])
    assert "Traceback" not in done.stderr


def test_damaged_model_files_are_one_line(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"this is not a model" * 100)
    tiny = tmp_path / "tiny"
    write_tiny_model(tiny, "llama")
    weights = next(tiny.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-200])
    for model in (foreign, tiny):
        done = run_client("--prompt", "x", "--model", str(model), timeout=90)
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "model" in errors[0], done.stderr
        assert "Traceback" not in done.stderr


def test_overrides_reach_both_workers_and_change_no_text(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    write_tiny_model(model, "tied_wide")
    options = (
        "--prompt", "the quick brown", "--raw", "--max-tokens", "24", "--model", str(model),
        "--verify-quantization", "int4", "--verify-overrides", "lm_head=none,layers.0.*=int8",
    )
    drafting = ("--draft-quantization", "w4a8", "--draft-overrides", "layers.1.mlp_out=none,lm_head=w8a8")
    (plain,) = answers(*options, "--draft-quantization", "off")
    (drafted,) = answers(*options, *drafting, "--draft-length", "3")
    assert drafted["token_ids"] == plain["token_ids"]
    assert drafted["speculation"]["accepted"] > 0
    shown = run_client(*options, *drafting).stderr
    assert re.search(r"MB\s+drafter only\s+weights int8", shown), shown
    assert re.search(r"MB\s+shared\s+weights int4-g64", shown), shown
    refused = run_client(*options[:-1], "lm_heads=none", timeout=90)
    assert refused.returncode == 2
    assert "verify_overrides: 'lm_heads' matches no linear layer; there are: layers.0.qkv" in refused.stderr


def test_nobody_listens() -> None:
    done = run_client("--prompt", "x", "--address", "127.0.0.1:9", timeout=60)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr


def test_server_answers_bad_requests_with_field_violations_and_goes_on_serving(tmp_path: Path) -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    model = tmp_path / "tiny"
    write_tiny_model(model, "llama")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--listen", address, "--model", str(model), "--kv-tokens", "512"],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )
    try:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            wait_until_serving(stub, server)
            bad = pb.GenerateRequest(text="", max_tokens=0, temperature=float("nan"), top_p=2.0, stop=[""])
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Generate(bad))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            violations = error_details_pb2.BadRequest()
            assert rpc_status.from_call(refused.value).details[0].Unpack(violations)
            named = {violation.field.split("[")[0] for violation in violations.field_violations}
            assert named >= {"max_tokens", "temperature", "top_p", "stop"}, named
            pieces = list(stub.Generate(pb.GenerateRequest(text="hello", max_tokens=5)))
            assert sum(len(piece.token_ids) for piece in pieces) == pieces[-1].usage.completion_tokens
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=40)
    assert server.returncode == 0, errors
    assert "Traceback" not in errors
