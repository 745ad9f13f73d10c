"""The client's command line: what it refuses, before anything is started, and the requests that it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.client.options import ClientOptions, parse_options
from qspec.errors import InvalidInput
from qspec.v1 import generation_pb2 as pb

SERVER = ["--address", "127.0.0.1:50051"]


def refused(*arguments: str) -> list[str]:
    with pytest.raises(InvalidInput) as raised:
        parse_options(arguments)
    assert "\n" not in str(raised.value)
    return [violation.field for violation in raised.value.violations]


def parsed(*arguments: str) -> ClientOptions:
    return parse_options([*SERVER, "--prompt", "hi", *arguments])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "0"), ("--max-tokens", "-5"), ("--max-tokens", str(2**32)),
        ("--temperature", "nan"), ("--temperature", "-0.5"), ("--temperature", "inf"), ("--temperature", "1e-5"),
        ("--top-p", "0"), ("--top-p", "1.01"), ("--top-p", "nan"),
        ("--top-k", "-1"), ("--seed", "-1"), ("--seed", str(2**64)),
        ("--stop", ""), ("--stop", "x" * 257), ("--stop", "\udcff"),
        ("--draft-length", "-1"), ("--draft-length", "many"), ("--draft-length", "1.5"),
        ("--timeout", "0"), ("--timeout", "nan"),
    ],
)
def test_bad_value_names_its_option(option: str, value: str) -> None:
    assert refused(*SERVER, "--prompt", "hi", f"{option}={value}") == [option]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "1"), ("--temperature", "0"), ("--temperature", "0.001"), ("--top-p", "1"), ("--top-k", "0"),
        ("--seed", "0"), ("--seed", str(2**64 - 1)), ("--stop", "x" * 256), ("--draft-length", "0"),
        ("--draft-length", "8"), ("--draft-length", "auto"),
    ],
)
def test_bounds_themselves_are_allowed(option: str, value: str) -> None:
    parsed(f"{option}={value}")


def test_all_bad_options_are_named_at_once() -> None:
    assert refused("--max-tokens", "0", "--top-p", "7", "--draft-quantization", "foo", "--threads", "-1") == [
        "--max-tokens", "--top-p", "--prompt", "--threads"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((), "--prompt"),
        (("--prompt", ""), "--prompt"),
        (("--prompt", "\udcff"), "--prompt"),
        (("--prompt", "a", "--draft-quantization", "int3"), "--draft-quantization"),
        (("--prompt", "a", "--verify-quantization", "int3"), "--verify-quantization"),
        (("--prompt", "a", "--model", "/does/not/exist"), "--model"),
        (("--prompt", "a", "--draft-length", "9"), "--draft-length"),
        (("--prompt", "a", "--address", "nonsense"), "--address"),
        (("--prompt", "a", *SERVER, "--model", "smollm2"), "--model"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: tuple[str, ...], field: str) -> None:
    assert refused(*arguments) == [field]


@pytest.mark.parametrize(("arguments", "field"), [
    (("--tls",), "--tls"), (("--insecure",), "--insecure"),  # without --address
    ((*SERVER, "--tls-ca", "/does/not/exist"), "--tls-ca"),
    ((*SERVER, "--tls-client-cert", "/does/not/exist"), "--tls-client-key"),
    ((*SERVER, "--tls-client-key", "/does/not/exist"), "--tls-client-cert"),
    ((*SERVER, "--tls-client-cert", "/does/not/exist", "--tls-client-key", "/neither"), "--tls-client-cert"),
    ((*SERVER, "--api-key-file", "/does/not/exist"), "--api-key-file"),
])
def test_what_cannot_be_shown_to_a_server_is_named(arguments: tuple[str, ...], field: str) -> None:
    assert refused("--prompt", "a", *arguments) == [field]


def test_a_key_comes_from_a_file_or_the_environment_and_stays_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ["--prompt", "a", "--address", "10.0.0.1:50051"]
    monkeypatch.setenv("QSPEC_API_KEY", "from-the-environment")
    assert parsed().server.api_key == "from-the-environment"
    assert refused(*elsewhere) == ["QSPEC_API_KEY"]
    file = tmp_path / "key"
    file.write_text("from-a-file\n", encoding="utf-8")
    assert parsed("--api-key-file", str(file)).server.api_key == "from-a-file"
    assert refused(*elsewhere, "--api-key-file", str(file)) == ["--api-key-file"]
    assert parse_options([*elsewhere, "--insecure"]).server.insecure
    assert parse_options([*elsewhere, "--tls"]).server.tls is not None
    file.write_text("two words\n", encoding="utf-8")
    assert refused(*SERVER, "--prompt", "a", "--api-key-file", str(file)) == ["--api-key-file"]


def test_option_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_options(["--prompt", "a", "--max-tokens", "many"])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--max-tokens" in error


def test_what_is_not_given_is_left_to_the_server() -> None:
    request = parsed().request_for("hi")
    assert request == pb.GenerateRequest(
        chat=pb.ChatPrompt(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi")]))


def test_everything_given_reaches_the_request() -> None:
    options = parsed("--raw", "--max-tokens=5", "--temperature=0", "--top-k=0", "--top-p=1", "--seed=0", "--stop=a",
                     "--stop=b", "--draft-length=0")
    assert options.request_for("hi") == pb.GenerateRequest(
        text="hi", max_tokens=5, temperature=0, top_k=0, top_p=1, seed=0, stop=["a", "b"], draft_length=0)


def test_stack_options_reach_the_private_stack() -> None:
    options = parse_options(["--prompt", "a", "--draft-quantization", "off", "--threads", "1"])
    assert options.address is None
    assert (options.stack.draft_quantization, options.stack.threads) == ("off", 1)


def test_prompts_of_files_follow_those_given(tmp_path: Path) -> None:
    plain, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("one\n\n  two \r\n", "utf-8")
    objects.write_text('{"turns": ["three", "no"]}\n\n{"prompt": "four\\nlines"}\n', "utf-8")
    options = parse_options([*SERVER, "--prompts-file", str(plain), "--prompt", "zero", "--prompts-file", str(objects)])
    assert options.prompts == ("zero", "one", "  two ", "three", "four\nlines")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n\n", "has no prompts"),
        ("a.txt", b"\xff\xfe", "not valid UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{oops\n', "line 2: no JSON"),
        ("a.jsonl", b'{"prompt": ""}\n', "line 1: give an object"),
        ("a.jsonl", b'{"turns": []}\n', "line 1: give an object"),
        ("a.jsonl", b'[1]\n', "line 1: give an object"),
    ],
)
def test_bad_prompt_file_names_the_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as raised:
        parse_options([*SERVER, "--prompts-file", str(path)])
    assert raised.value.violations[0].field == "--prompts-file"


def test_missing_prompt_file() -> None:
    assert refused(*SERVER, "--prompts-file", "/does/not/exist") == ["--prompts-file"]


def test_what_adjusts_logits_reaches_the_request() -> None:
    request = parsed(
        "--min-p", "0.1", "--typical-p", "0.9", "--repetition-penalty", "1.2", "--presence-penalty", "0.5",
        "--frequency-penalty", "-0.5", "--logit-bias", "5=1.5,9=-2", "--min-tokens", "3",
        "--stop-token-ids", "7,5", "--ignore-eos", "--n", "3", "--echo", "--logprobs", "0", "--prompt-logprobs", "20",
    ).request
    assert (request.min_p, request.typical_p, request.repetition_penalty) == (0.1, 0.9, 1.2)
    assert (request.presence_penalty, request.frequency_penalty, request.min_tokens) == (0.5, -0.5, 3)
    assert (list(request.stop_token_ids), request.ignore_eos) == ([7, 5], True)
    assert (request.n, request.echo, request.logprobs, request.prompt_logprobs) == (3, True, 0, 20)
    assert not parsed().request.ignore_eos
    assert not any(parsed().request.HasField(field) for field in ("n", "logprobs", "prompt_logprobs", "min_tokens"))
    assert [(entry.token_id, entry.bias) for entry in request.logit_bias] == [(5, 1.5), (9, -2.0)]


@pytest.mark.parametrize("option", [
    "--min-p=-0.1", "--typical-p=0", "--repetition-penalty=0", "--presence-penalty=3", "--frequency-penalty=nan",
    "--logit-bias=", "--logit-bias=5", "--logit-bias=5=x", "--logit-bias=x=5", "--logit-bias=-1=5",
    "--stop-token-ids=", "--stop-token-ids=5,", "--stop-token-ids=x", "--stop-token-ids=-1",
    "--stop-token-ids=4294967296",
    "--n=0", "--n=65", "--logprobs=21", "--logprobs=-1", "--prompt-logprobs=21",
    "--logit-bias=4294967296=1", "--logit-bias=5=101", "--logit-bias=5=nan", "--min-tokens=-1",
])
def test_what_no_server_accepts_is_named(option: str) -> None:
    assert refused(*SERVER, "--prompt", "hi", option) == [option.partition("=")[0]]


def test_a_constraint_reaches_the_request(tmp_path: Path) -> None:
    file = tmp_path / "constraint"
    file.write_text('{"enum": ["é"]}', "utf-8")
    assert parsed("--json-schema", str(file)).request.json_schema == '{"enum": ["é"]}'
    assert parsed("--grammar", str(file)).request.grammar == '{"enum": ["é"]}'
    assert parsed("--regex", "[ab]+").request.regex == "[ab]+"
    assert parsed().request.WhichOneof("constraint") is None


def test_a_constraint_that_cannot_be_sent_names_its_option(tmp_path: Path) -> None:
    long, empty, binary = tmp_path / "long", tmp_path / "empty", tmp_path / "binary"
    long.write_text("x" * 2**20)
    empty.write_text("")
    binary.write_bytes(b"\xff")
    for file in (long, empty, binary, tmp_path, tmp_path / "nowhere"):
        assert refused(*SERVER, "--prompt", "hi", "--json-schema", str(file)) == ["--json-schema"]
        assert refused(*SERVER, "--prompt", "hi", "--grammar", str(file)) == ["--grammar"]
    assert refused(*SERVER, "--prompt", "hi", "--regex", "x" * 65_537) == ["--regex"]
    assert refused(*SERVER, "--prompt", "hi", "--regex", "") == ["--regex"]
    assert refused(*SERVER, "--prompt", "hi", "--regex", "a", "--json-schema", str(long)) == ["--regex"]
