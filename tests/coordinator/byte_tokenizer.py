"""A tokenizer whose tokens are bytes: small, total, and able to cut a character in two."""

from __future__ import annotations

from collections.abc import Sequence


class ByteTokenizer:
    """Token ids 0 to 255 are bytes; 256 ends a sequence."""

    vocab_size = 257
    eos_token_ids = frozenset({256})
    vocab_fingerprint = "bytes"
    most_bytes_per_token = 1

    def encode(self, text: str) -> list[int]:
        """UTF-8."""
        return list(text.encode())

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """A template in one line."""
        return "".join(f"[{m['role']}]{m['content']}\n" for m in messages)

    def encode_rendered(self, text: str) -> list[int]:
        """UTF-8."""
        return self.encode(text)
