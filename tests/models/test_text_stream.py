"""The pieces of a text stream are the text, and never half a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from qspec.models.text_stream import REPLACEMENT, TextStream
from qspec.models.tokenizer import Tokenizer


def byte_level() -> Tokenizer:
    """Every byte a token, a few words, a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġthe", "ab"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _tokenizer(backend)


def byte_fallback() -> Tokenizer:
    """A SentencePiece vocabulary: words with a mark for the blank, bytes for all else, a special token."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁the", "▁", "▁b", "a", "é", "😀", REPLACEMENT]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _tokenizer(backend)


def _tokenizer(backend: Backend) -> Tokenizer:
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    return Tokenizer(backend, eos_token_ids=frozenset(), special_tokens={}, chat_template=None)


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


class CountingDecoder:
    """Counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.decoded += len(token_ids)
        return self._tokenizer.decode(token_ids)

    def settles(self, token_id: int) -> bool:
        return self._tokenizer.settles(token_id)


def stream(tokenizer: Tokenizer, chunks: Sequence[Sequence[int]]) -> list[str]:
    """What is given out for each chunk, and at the end."""
    text_stream = TextStream(tokenizer)
    return [*(text_stream.push(chunk) for chunk in chunks), text_stream.flush()]


def tokens(kind: str) -> st.SearchStrategy[int]:
    # one id beyond the vocabulary: padded embeddings can yield tokens that have no text
    anything = st.integers(0, TOKENIZERS[kind].vocab_size)
    return st.one_of(anything, st.sampled_from([TOKENIZERS[kind].vocab_size - 1, TOKENIZERS[kind].vocab_size - 2]))


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_of_any_tokens_are_their_text(kind: str, data: st.DataObject) -> None:
    chunks = data.draw(st.lists(st.lists(tokens(kind), max_size=6), max_size=60))
    everything = [token for chunk in chunks for token in chunk]
    assert "".join(stream(TOKENIZERS[kind], chunks)) == TOKENIZERS[kind].decode(everything)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: REPLACEMENT not in text), size=st.integers(1, 5))
def test_pieces_of_real_text_hold_whole_characters(text: str, size: int) -> None:
    token_ids = TOKENIZERS["byte_level"].encode(text)
    pieces = stream(TOKENIZERS["byte_level"], [token_ids[i : i + size] for i in range(0, len(token_ids), size)])
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_an_emoji_of_four_byte_tokens_comes_at_once() -> None:
    token_ids = TOKENIZERS["byte_level"].encode("a😀b")
    assert len(token_ids) == 6
    assert stream(TOKENIZERS["byte_level"], [[i] for i in token_ids]) == ["a", "", "", "", "😀", "b", ""]


def test_a_byte_run_is_held_back_until_it_ends() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    run = [0xF0, 0x9F, 0x98, 0x80]
    the = 256  # "▁the", the first after the bytes
    assert stream(tokenizer, [[the], *([byte] for byte in run), [the]]) == ["the", "", "", "", "", "😀 the", ""]


@pytest.mark.parametrize("byte", ["a", "\x80"])
def test_work_per_token_is_constant(byte: str) -> None:
    backend = TOKENIZERS["byte_level"]
    # The byte 0x80 alone (the last of "À") is no UTF-8, so its stream never ends in a whole character.
    token = backend.encode("a" if byte == "a" else "À")[-1]
    assert backend.decode([token]) == ("a" if byte == "a" else REPLACEMENT)
    counting = CountingDecoder(backend)
    text_stream = TextStream(counting)
    pieces = [text_stream.push([token]) for _ in range(2000)]
    assert "".join([*pieces, text_stream.flush()]) == backend.decode([token] * 2000)
    assert counting.decoded < 2000 * 70
