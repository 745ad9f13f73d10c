"""Writing a tokenizer directory (``qspec.models.tokenizer`` reads it) from a model's files.

Hugging Face models go through transformers' ``AutoTokenizer``, whose class-specific corrections (BOS, pre-tokenisers,
SentencePiece conversion) are baked into the ``tokenizer.json`` that it saves. The directory is a Hugging Face tokenizer
directory as well, so ``AutoTokenizer`` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from qspec.errors import ModelError
from qspec.models.gguf_file import GgufFile
from qspec.models.gguf_tokenizer import gguf_tokenizer
from qspec.models.resolve import ModelSource, SourceKind
from qspec.models.tokenizer import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE, Tokenizer, file_checksum


def write_tokenizer(source: ModelSource, directory: Path) -> None:
    """Convert the tokenizer of ``source`` into ``directory`` (created); ``ModelError`` when it has none that fits."""
    if source.kind is SourceKind.GGUF:
        with closing(GgufFile(source.path)) as file:
            write_gguf_tokenizer(file, directory)
    else:
        _write(directory, *_hugging_face_tokenizer(source.path))


def write_gguf_tokenizer(file: GgufFile, directory: Path) -> None:
    """Convert the tokenizer of an open GGUF file into ``directory``; ``ModelError`` when it has none that fits."""
    _write(directory, *gguf_tokenizer(file))


def _write(
    directory: Path, backend: Backend, special_tokens: Mapping[str, str], eos: frozenset[int], template: str | None
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / TOKENIZER_FILE))
    if template is not None:
        (directory / TEMPLATE_FILE).write_bytes(template.encode())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special_tokens}
    tokenizer = Tokenizer(backend, eos_token_ids=eos, special_tokens=special_tokens, chat_template=template)
    checksum = file_checksum(directory / TOKENIZER_FILE)
    settings = {
        "eos_token_ids": sorted(eos), "special_tokens": dict(special_tokens),
        "vocabulary": {"checksum": checksum, "fingerprint": tokenizer.vocab_fingerprint},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=2), "utf-8")


def _hugging_face_tokenizer(path: Path) -> tuple[Backend, dict[str, str], frozenset[int], str | None]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers, tokenizers and sentencepiece raise many classes, bare Exception too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the tokenizer in {path} cannot be read ({reason}); download the model again") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise ModelError(f"the tokenizer in {path} ({type(tokenizer).__name__}) has no tokenizer.json form")
    roles: dict[str, Any] = tokenizer.special_tokens_map
    special = {role: token for role, token in roles.items() if isinstance(token, str)}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return backend, special, _stop_tokens(path, tokenizer.eos_token_id), template


def _stop_tokens(path: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """What transformers' ``generate`` stops at: generation_config.json, else config.json, else the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        file = path / name
        if not file.is_file():
            continue
        try:
            found: Any = json.loads(file.read_text("utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{file} is no JSON object ({error}); download the model again") from error
        if found is not None:
            ids = found if isinstance(found, list) else [found]
            if not all(isinstance(token_id, int) for token_id in ids):
                raise ModelError(f"{file}: eos_token_id must be a token id or a list of them, got {found!r}")
            return frozenset(ids)
    return frozenset(() if tokenizer_eos is None else (tokenizer_eos,))
