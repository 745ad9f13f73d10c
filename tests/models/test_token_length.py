"""A text that is longer than its tokens could stand for is too long: the bound holds, and it is not far off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from qspec.models.converted import prepare_tokenizer
from qspec.models.token_length import ALLOWANCE, most_bytes_per_token
from qspec.models.tokenizer import Tokenizer
from tests.models.test_text_stream import byte_fallback, byte_level
from tests.tiny_models import build_tiny_tokenizer

BLANK = "▁"


def sentencepiece() -> Backend:
    """Byte fallback, and blanks written as Llama's are."""
    backend = byte_fallback()._backend
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    return backend


KEEPING = {
    "byte level": byte_level()._backend, "byte fallback": sentencepiece(),
    "trained": build_tiny_tokenizer().backend_tokenizer,
}


@pytest.mark.parametrize("name", KEEPING)
@given(text=st.text(max_size=40) | st.sampled_from(["the " * 9, "<end><end>", " " * 50, "<|im_end|>" * 4, "▁the" * 5]))
def test_no_token_stands_for_more(name: str, text: str) -> None:
    backend = KEEPING[name]
    assert len(text.encode()) <= most_bytes_per_token(backend) * len(backend.encode(text, add_special_tokens=False).ids)


def test_it_is_the_longest_token() -> None:
    assert most_bytes_per_token(KEEPING["byte level"]) == len("<end>")
    assert Tokenizer.load(prepare_tokenizer("smollm2")).most_bytes_per_token == 81


def shrinking() -> dict[str, Backend]:
    """Vocabularies in which a token may stand for more than it is written with."""
    composing, stripping, dropping, swallowing = (byte_level()._backend for _ in range(4))
    composing.normalizer = normalizers.NFC()
    stripping.normalizer = normalizers.Sequence([normalizers.Replace(" ", BLANK), normalizers.Strip()])
    dropping.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\s+"), behavior="removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    swallowing.add_special_tokens([AddedToken("<a>", lstrip=True, special=True)])
    fusing = Backend(models.BPE(vocab={"?": 0, "a": 1}, merges=[], unk_token="?", fuse_unk=True))
    deleting = sentencepiece()
    deleting.normalizer = normalizers.Replace(" ", "")
    return {"composing": composing, "stripping": stripping, "dropping": dropping, "swallowing": swallowing,
            "fusing": fusing, "deleting": deleting}


@pytest.mark.parametrize("name", shrinking())
def test_where_bytes_get_lost_it_is_generous(name: str) -> None:
    backend = shrinking()[name]
    longest = max(len(token.encode()) for token in backend.get_vocab(with_added_tokens=True))
    assert most_bytes_per_token(backend) == ALLOWANCE * longest


def test_what_is_composed_is_within_the_allowance() -> None:
    backend = byte_level()._backend
    backend.normalizer = normalizers.NFC()
    for text in ("\u1100\u1161\u11a8" * 50, "a\u0302\u0303" * 50, "\u212b" * 50):
        assert len(text.encode()) <= most_bytes_per_token(backend) * len(backend.encode(text).ids)
