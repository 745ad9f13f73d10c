"""The colours say what the rounds were."""

from __future__ import annotations

import io

import pytest
import torch

from qspec import QSPECModel, qspec_sampling
from qspec.api.generation import GeneratedText, Round
from qspec.api.round_colours import TokenOrigin, coloured_text, show, token_origins, wants_colour
from qspec.sequence import FinishReason


def origins(tokens: int, drafted: int, accepted: int) -> list[TokenOrigin]:
    """Of a round's tokens."""
    return [origin for _, origin in token_origins(Round(tuple(range(tokens)), drafted, accepted))]


def test_origins() -> None:
    accepted, recovered, bonus = TokenOrigin.ACCEPTED, TokenOrigin.RECOVERED, TokenOrigin.BONUS
    assert origins(1, 0, 0) == [TokenOrigin.PLAIN]
    assert origins(3, 4, 2) == [accepted, accepted, recovered]
    assert origins(3, 2, 2) == [accepted, accepted, bonus]
    assert origins(2, 4, 4) == [accepted, accepted], "the text ended inside the draft"


@pytest.fixture
def text(pair: QSPECModel) -> GeneratedText:
    """A text with a character of two tokens (é), an accepted, a recovered and a bonus token."""
    first, second = pair.verify.tokenizer.encode("é")
    a, b, c, d = (pair.verify.tokenizer.encode(letter)[0] for letter in "axcz")
    rounds = (Round((a,), 0, 0), Round((first, second), 2, 1), Round((b, c), 1, 1), Round((d,), 1, 0))
    return GeneratedText((5,), rounds, FinishReason.LENGTH)


def test_text_is_coloured_by_whole_characters(pair: QSPECModel, text: GeneratedText) -> None:
    tokenizer = pair.verify.tokenizer
    assert coloured_text(text, tokenizer, colour=False) == "aéxcz"
    green, red, blue, reset = "\033[32m", "\033[31m", "\033[34m", "\033[0m"
    assert coloured_text(text, tokenizer, colour=True) == (
        f"a{red}é{reset}{green}x{reset}{blue}c{reset}{red}z{reset}")


def test_colours_on_a_terminal_or_when_asked(
    pair: QSPECModel, text: GeneratedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    out = io.StringIO()
    show((text,), pair.verify.tokenizer, out)
    assert out.getvalue() == "aéxcz\n[6 tokens in 4 rounds (length), 2 of 4 drafted tokens accepted]\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert wants_colour(out)
    show((text,), pair.verify.tokenizer, out)
    assert "\033[32maccepted" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(out)


def test_verbose_writes_and_silence_is_the_default(pair: QSPECModel, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = torch.tensor([[5, 9]])
    qspec_sampling(prefix, pair, max_len=6, temperature=0)
    assert capsys.readouterr().out == ""
    qspec_sampling(prefix, pair, max_len=6, temperature=0, verbose=True)
    assert "tokens in" in capsys.readouterr().out
