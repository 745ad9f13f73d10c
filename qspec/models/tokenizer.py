"""Text to token ids and back, as transformers does it, without importing transformers or torch.

A tokenizer directory is written once (``qspec.models.tokenizer_files``) and holds ``tokenizer.json``, an optional
``chat_template.jinja`` and ``qspec_tokenizer.json`` (stop tokens and the template's special tokens). Loading it takes
a tenth of a second, where transformers' own import takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from qspec.errors import InvalidInput, ModelError
from qspec.models.token_length import most_bytes_per_token

if TYPE_CHECKING:
    from qspec.models.chat_template import ChatTemplate

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "qspec_tokenizer.json"


def vocab_fingerprint(directory: Path) -> str:
    """``Tokenizer.load(directory).vocab_fingerprint``, without loading it where it was written down. ``ModelError``."""
    try:
        known = json.loads((directory / SETTINGS_FILE).read_text("utf-8")).get("vocabulary", {})
        if known and known["checksum"] == file_checksum(directory / TOKENIZER_FILE):
            return str(known["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # loading says what is wrong
    return Tokenizer.load(directory).vocab_fingerprint


def file_checksum(path: Path) -> int:
    """CRC-32 of a tokenizer's file, by which an edited one is told from the one that was converted."""
    return zlib.crc32(path.read_bytes())


class Tokenizer:
    """One model's vocabulary."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: frozenset[int],
        special_tokens: Mapping[str, str],
        chat_template: str | None,
    ) -> None:
        self._backend = backend
        self._template_source = chat_template
        self._special_tokens = dict(special_tokens)
        self.eos_token_ids = eos_token_ids
        """Tokens that end a text."""

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a directory written by ``tokenizer_files.write``; ``ModelError`` when it is none or broken."""
        try:
            backend = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER_FILE))
            settings = json.loads((directory / SETTINGS_FILE).read_text("utf-8"))
            template = directory / TEMPLATE_FILE
            # newline="": a template's line ends are part of the prompt
            source = template.read_bytes().decode("utf-8") if template.is_file() else None
            eos, special = frozenset(settings["eos_token_ids"]), settings["special_tokens"]
        except Exception as error:  # the Rust library raises bare Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"the tokenizer in {directory} is unreadable ({reason}); delete that directory") from error
        # What a checkpoint was trained with (padding, truncation) is not how prompts are to be treated.
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, eos_token_ids=eos, special_tokens=special, chat_template=source)

    @property
    def definition(self) -> str:
        """The vocabulary and how text becomes tokens, as the JSON of a ``tokenizer.json``."""
        return self._backend.to_str()

    @property
    def has_chat_template(self) -> bool:
        """Whether ``encode_chat`` works."""
        return self._template_source is not None

    @property
    def unknown_token_id(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None where every text can be written."""
        unknown = getattr(self._backend.model, "unk_token", None)
        return None if unknown is None else self._backend.token_to_id(unknown)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have a text; a model's embedding may be larger (padding)."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def vocab_fingerprint(self) -> str:
        """Equal for two tokenizers exactly when every token has the same id (a SHA-256 of the sorted vocabulary)."""
        entries = sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
        return hashlib.sha256(json.dumps(entries, ensure_ascii=True).encode()).hexdigest()

    @cached_property
    def _byte_token_ids(self) -> frozenset[int]:
        found = (self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token_id for token_id in found if token_id is not None)

    @cached_property
    def _special_token_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        if self._template_source is None:
            raise InvalidInput.field("chat", "this model has no chat template: give a plain text (--raw)")
        from qspec.models.chat_template import ChatTemplate  # late: only who renders prompts needs Jinja

        return ChatTemplate(self._template_source, self._special_tokens)

    def prepare(self) -> None:
        """Find out now what the first text would wait for, and others with it: a tenth of a second, or several."""
        _ = self.most_bytes_per_token, self.vocab_fingerprint
        with contextlib.suppress(InvalidInput):  # no template, or a broken one: an error of whoever asks for it
            _ = self._chat_template

    @cached_property
    def most_bytes_per_token(self) -> int:
        """A text of more bytes than so many times a number of tokens has more tokens, and need not be read for that.

        Where a normaliser may shrink texts it is generous (``qspec.models.token_length``).
        """
        return most_bytes_per_token(self._backend)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the model's own tokenizer adds (such as BOS)."""
        return self._encode(text, add_special_tokens=True)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that the chat template makes of ``messages``."""
        return self._chat_template.render(messages)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of what ``render_chat`` gave; the template has brought its special tokens itself."""
        return self._encode(text, add_special_tokens=False)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation (dictionaries with role and content), ready for the model's answer.

        Raises ``InvalidInput`` (field chat) when the model has no chat template or its template refuses.
        """
        return self.encode_rendered(self.render_chat(messages))

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As a batch of one: for that the library gives up the interpreter's lock, and a long text takes seconds."""
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``; special tokens have none, bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)

    def settles(self, token_id: int) -> bool:
        """Whether the text before ``token_id`` no longer depends on what follows (``qspec.models.text_stream``).

        Only byte-fallback vocabularies have tokens that do not: the bytes themselves, and what ``decode`` leaves out.
        """
        if not self._byte_token_ids:
            return True
        return (
            token_id not in self._byte_token_ids
            and token_id not in self._special_token_ids
            and self._backend.id_to_token(token_id) is not None
        )
