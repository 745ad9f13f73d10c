"""The tokenizer equals transformers' on text and conversations, without transformers or torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qspec.errors import InvalidInput, ModelError
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer, vocab_fingerprint
from tests.tiny_models import build_tiny_tokenizer, edit_config, write_tiny_model

TEXTS = (
    "", "the quick brown fox", "  two  12 blanks\n\n\tand tabs 3.14159 ", "it's ISN'T I'll",
    "naïve 漢字 😀👩‍👩‍👧 \u200b",
    "<|im_start|>user\nspecial<|im_end|>", "a" * 500, "\r\n \r\n",
)
CONVERSATIONS = (
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": " be brief "}, {"role": "user", "content": "hi\n"},
     {"role": "assistant", "content": "hello"}, {"role": "user", "content": "😀 12"}],
)
TEMPLATE = """
{%- if strftime_now is defined %}{%- set year = strftime_now("%Y") | length %}{% endif -%}
{{ bos_token }}{% for message in messages %}
    {% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {% generation %}[{{ message | tojson }}]{% endgeneration %}
{% endfor %}
{% set space = namespace(count=year) %}{{ space.count }}{% if add_generation_prompt %}{{ eos_token }}{% endif %}
"""


@pytest.fixture
def tiny(tmp_path: Path, cache: Path) -> Path:
    write_tiny_model(tmp_path / "model", "smollm2")
    return tmp_path / "model"


def test_tiny_tokenizer_equals_transformers(tiny: Path) -> None:
    expected, tokenizer = AutoTokenizer.from_pretrained(tiny), Tokenizer.load(prepare_tokenizer(str(tiny)))
    assert tokenizer.vocab_size == len(expected)
    _assert_equal(tokenizer, expected)


def test_template_features_equal_transformers(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    expected, tokenizer = AutoTokenizer.from_pretrained(tiny), Tokenizer.load(prepare_tokenizer(str(tiny)))
    _assert_equal(tokenizer, expected)
    assert tokenizer.render_chat(CONVERSATIONS[0]).startswith("<|endoftext|>")
    with pytest.raises(InvalidInput, match="chat: .*no tools here.*--raw"):
        tokenizer.encode_chat([{"role": "tool", "content": "x"}])


def test_smollm2_equals_transformers_on_its_converted_directory() -> None:
    directory = prepare_tokenizer("smollm2")
    tokenizer, expected = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
    _assert_equal(tokenizer, expected)
    assert {tokenizer._backend.id_to_token(i) for i in tokenizer.eos_token_ids} == {"<|im_end|>"}
    assert tokenizer.vocab_size == 49152
    # Digits stand alone and do not take a blank from the run before them, as in the model's own tokenizer.json.
    assert [tokenizer.decode([i]) for i in tokenizer.encode("  12")] == ["  ", "1", "2"]


def test_a_long_text_leaves_the_interpreter_to_others() -> None:
    """Whoever serves others has threads that must not wait for it."""
    tokenizer = Tokenizer.load(prepare_tokenizer("smollm2"))
    tokenizer.encode("warm")
    turns, encoded = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not encoded.is_set():
            turns += 1
            time.sleep(0.0005)

    other = threading.Thread(target=take_turns)
    text = "the quick brown fox " * 10_000  # a tenth of a second
    other.start()
    before = turns
    tokens = tokenizer.encode(text)
    during = turns - before
    encoded.set()
    other.join()
    assert during > 10
    assert tokens == tokenizer._backend.encode(text).ids


def _assert_equal(tokenizer: Tokenizer, expected: object) -> None:
    for text in TEXTS:
        assert tokenizer.encode(text) == expected(text).input_ids, text  # type: ignore[operator]
    for messages in CONVERSATIONS:
        ids = expected.apply_chat_template(  # type: ignore[attr-defined]
            messages, add_generation_prompt=True, return_dict=True
        ).input_ids
        assert tokenizer.encode_chat(messages) == ids
        text = expected.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
        assert tokenizer.decode(ids) == text


def test_a_model_without_template_says_so(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path / "model", "gpt2", chat_template=False)
    tokenizer = Tokenizer.load(prepare_tokenizer(str(tmp_path / "model")))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidInput, match="chat: this model has no chat template: .*--raw"):
        tokenizer.encode_chat(CONVERSATIONS[0])


def test_a_broken_template_is_an_error_of_the_conversation(tiny: Path) -> None:
    (tiny / "chat_template.jinja").write_text("{% for %}", "utf-8")
    with pytest.raises(InvalidInput, match="chat: the model's chat template is broken"):
        Tokenizer.load(prepare_tokenizer(str(tiny))).encode_chat(CONVERSATIONS[0])


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [([2, 1], 0, {1, 2}), (1, 0, {1}), (None, [0], {0}), (None, None, {2})],
)
def test_stop_tokens_are_those_of_generate(
    tiny: Path, generation: object, config: object, expected: set[int]
) -> None:
    (tiny / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}), "utf-8")
    edit_config(tiny, {"eos_token_id": config})
    assert Tokenizer.load(prepare_tokenizer(str(tiny))).eos_token_ids == expected


def test_the_fingerprint_that_was_written_down_is_that_of_the_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "one", "llama")
    directory = prepare_tokenizer(str(tmp_path / "one"))
    expected = Tokenizer.load(directory).vocab_fingerprint

    def refuse(_directory: Path) -> Tokenizer:
        raise AssertionError("need not be loaded")

    with monkeypatch.context() as loading:
        loading.setattr(Tokenizer, "load", refuse)
        assert vocab_fingerprint(directory) == expected
    content = (directory / "tokenizer.json").read_text("utf-8")
    (directory / "tokenizer.json").write_text(content.replace("<|im_end|>", "<|other|>"), "utf-8")
    edited = vocab_fingerprint(directory)
    assert edited == Tokenizer.load(directory).vocab_fingerprint != expected
    settings = json.loads((directory / "qspec_tokenizer.json").read_text("utf-8"))
    del settings["vocabulary"]
    (directory / "qspec_tokenizer.json").write_text(json.dumps(settings), "utf-8")
    assert vocab_fingerprint(directory) == edited, "a directory of an earlier version"
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="unreadable"):
        vocab_fingerprint(directory)


def test_fingerprint_tells_vocabularies_apart(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "two", "other"):
        write_tiny_model(tmp_path / name, "smollm2", seed=len(name))
    backend = build_tiny_tokenizer()
    backend.add_tokens(["zebra"])
    backend.save_pretrained(tmp_path / "other")
    one, two, other = (
        Tokenizer.load(prepare_tokenizer(str(tmp_path / name))).vocab_fingerprint for name in ("one", "two", "other")
    )
    assert one == two != other


def test_a_damaged_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"model: the tokenizer in .* is unreadable") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_cached_tokenizer_needs_neither_torch_nor_transformers(tiny: Path) -> None:
    directory = prepare_tokenizer(str(tiny))
    program = (
        "import sys; from pathlib import Path\n"
        "from qspec.models.converted import prepare_tokenizer; from qspec.models.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load(prepare_tokenizer({str(tiny)!r}))\n"
        "tokenizer.encode_chat([{'role': 'user', 'content': 'x'}])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'gguf', 'huggingface_hub', 'bitsandbytes'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])
    assert directory.is_dir()
