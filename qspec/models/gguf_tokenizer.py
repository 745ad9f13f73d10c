"""The tokenizer inside a GGUF file.

Byte-level vocabularies (``tokenizer.ggml.model`` = ``gpt2``) are rebuilt here, with the pre-tokenisation that
``tokenizer.ggml.pre`` names: transformers' own GGUF import knows no ``smollm`` and splits digits otherwise than the
model was trained (two blanks before a number become one token with the number's blank split off). SentencePiece
vocabularies (``llama``) go through transformers, which recovers the merges from the scores.
The splits are those of llama.cpp's ``llama-vocab.cpp``, as the models' own ``tokenizer.json`` state them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from qspec.errors import ModelError
from qspec.models.gguf_file import GgufFile

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS = {
    "default": "gpt2", "gpt-2": "gpt2", "smollm": "digits", "llama-bpe": "llama3", "llama3": "llama3",
    "llama-v3": "llama3", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
}


def gguf_tokenizer(file: GgufFile) -> tuple[Tokenizer, dict[str, str], frozenset[int], str | None]:
    """Tokenizer, special tokens by role (``bos_token`` …), stop tokens and chat template of an open GGUF file."""
    tokens = file.metadata("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError(f"{file.path} contains no tokenizer; use a complete GGUF file")
    kind = file.metadata("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file.path)
    else:
        raise ModelError(f"GGUF tokenizer {kind!r} is not supported; known are gpt2, llama")
    special = {}
    for role, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token_id = file.metadata(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token_id, int) and token_id < len(tokens):
            special[role] = tokens[token_id]
    stops = (file.metadata(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return backend, special, frozenset(s for s in stops if s is not None), file.metadata("tokenizer.chat_template")


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    name = file.metadata("tokenizer.ggml.pre") or "default"
    if (scheme := _PRE_TOKENIZERS.get(name)) is None:
        raise ModelError(f"GGUF pre-tokenizer {name!r} is not supported; known are {', '.join(_PRE_TOKENIZERS)}")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = (merge.partition(" ") for merge in file.metadata("tokenizer.ggml.merges") or ())
    merges = [(left, right) for left, _, right in pairs]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=scheme == "llama3"))
    if scheme == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(scheme)
    backend.decoder = decoders.ByteLevel()
    _add_marked_tokens(backend, tokens, file.metadata("tokenizer.ggml.token_type") or [])
    _add_bos(backend, file, tokens, default=scheme == "llama3")
    return backend


def _pre_tokenizer(scheme: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=scheme in ("gpt2", "digits"))
    if scheme == "gpt2":
        return byte_level
    if scheme == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    split = Regex(_LLAMA3_SPLIT if scheme == "llama3" else _QWEN2_SPLIT)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(split, behavior="isolated"), byte_level])


def _add_marked_tokens(backend: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Tokens marked as control or user-defined are matched whole in the text; only control tokens have no text."""
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False, special=False)])


def _add_bos(backend: Tokenizer, file: GgufFile, tokens: list[str], default: bool) -> None:
    wanted: Any = file.metadata("tokenizer.ggml.add_bos_token")
    bos = file.metadata("tokenizer.ggml.bos_token_id")
    if (default if wanted is None else wanted) and bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )


def _sentencepiece(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except (ValueError, KeyError, OSError, TypeError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(f"the tokenizer of {path} cannot be converted ({reason})") from error
    backend = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    return backend
