"""Each function gives the verifying model's own text, whatever drafts, and as much of it as was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec import (
    QSPECModel,
    QuantizedModel,
    autoregressive_sampling,
    qspec_sampling,
    qspec_sampling_different_models,
    speculative_sampling,
)
from qspec.api.sampling_functions import speculative_texts
from qspec.api.text_request import TextRequest
from qspec.errors import InvalidInput
from qspec.interfaces import Drafter
from tests.api.conftest import Loader

PREFIX = torch.tensor([[5, 9, 5, 9, 5]])
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "random_seed": 0}
MAX_LEN = 24
RAGGED = torch.tensor([[0, 0, 0, 17], [5, 9, 5, 9], [0, 250, 4, 8]])
MASK = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]])


def alone(model: QuantizedModel, how: dict[str, float], prefix: Tensor = PREFIX, **more: Tensor) -> Tensor:
    """The model's text without any drafts."""
    return autoregressive_sampling(prefix, model, MAX_LEN, **how, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_model_that_drafts_for_itself_writes_its_own_text(pair: QSPECModel, how: dict[str, float]) -> None:
    expected = alone(pair.verify, how)
    for gamma in (0, 1, 4, 8):
        text = qspec_sampling(PREFIX, pair, max_len=MAX_LEN, gamma=gamma, **how)  # type: ignore[arg-type]
        assert torch.equal(text, expected)


@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("draft", ["llama@1", "gpt2", "qwen3", "llama"])
@pytest.mark.parametrize("method", ["none", "w8a8"])
def test_another_models_drafts_change_no_token(
    load: Loader, draft: str, method: str, how: dict[str, float]
) -> None:
    target = load("llama")
    expected = alone(target, how, RAGGED, attention_mask=MASK)
    for gamma in (1, 4):
        text = speculative_sampling(
            RAGGED, load(draft, method), target, MAX_LEN, gamma, attention_mask=MASK, **how)  # type: ignore[arg-type]
        assert torch.equal(text, expected)


def test_greedy_text_is_that_of_transformers(load: Loader, directory_of: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(directory_of("gpt2")).eval()
    text = speculative_sampling(PREFIX, load("llama"), load("gpt2"), MAX_LEN, temperature=0.0)
    with torch.no_grad():
        logits = theirs(text).logits
    assert torch.equal(logits[0, PREFIX.shape[1] - 1 : -1].argmax(-1), text[0, PREFIX.shape[1] :])
    assert torch.allclose(load("gpt2")(text), logits, atol=1e-4)


def test_models_can_be_named(directory_of: Callable[[str], Path], load: Loader) -> None:
    name, expected = str(directory_of("llama")), alone(load("llama"), SEEDED)
    how = {**SEEDED, "max_len": MAX_LEN}
    texts = [
        autoregressive_sampling(PREFIX, name, MAX_LEN, **SEEDED),  # type: ignore[arg-type]
        speculative_sampling(PREFIX, str(directory_of("gpt2")), name, **how),  # type: ignore[arg-type]
        qspec_sampling(PREFIX, name, "w8a8", "none", **how),  # type: ignore[arg-type]
        qspec_sampling(PREFIX, name, "auto", "auto", **how),  # type: ignore[arg-type]
        qspec_sampling_different_models(
            PREFIX, str(directory_of("gpt2")), name, "w8a8", "none", **how),  # type: ignore[arg-type]
    ]
    assert all(torch.equal(text, expected) for text in texts)


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_makes_a_text_and_0_is_one(pair: QSPECModel) -> None:
    def sample(seed: int | None) -> list[int]:
        return list(qspec_sampling(PREFIX, pair, max_len=MAX_LEN, random_seed=seed)[0].tolist())

    state = torch.get_rng_state()
    assert sample(0) == sample(0)
    assert len({tuple(sample(seed)) for seed in (0, 1, (1 << 64) - 1)}) == 3
    assert sample(None) != sample(None)
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_prompts_of_a_batch_get_different_texts_and_row_0_that_of_a_batch_of_1(pair: QSPECModel) -> None:
    single = qspec_sampling(PREFIX, pair, max_len=MAX_LEN, **SEEDED)  # type: ignore[arg-type]
    batch = qspec_sampling(PREFIX.repeat(3, 1), pair, max_len=MAX_LEN, **SEEDED)  # type: ignore[arg-type]
    assert len({tuple(row.tolist()) for row in batch}) == 3
    assert batch[0, : single.shape[1]].tolist() == single[0].tolist()


def test_without_a_seed_the_law_is_the_targets(load: Loader) -> None:
    """Rejection sampling with a drafter that knows nothing: first tokens against the target's probabilities."""
    target, prefix = load("llama"), torch.tensor([[7]])
    probs = torch.softmax(target(prefix)[0, -1], -1).topk(3).values
    top = target(prefix)[0, -1].topk(3).indices
    expected = probs / probs.sum()
    counts = torch.zeros(3)
    for _ in range(8):
        batch = speculative_sampling(prefix.repeat(128, 1), load("gpt2"), target, 3, gamma=2, top_k=3)
        counts += torch.stack([(batch[:, 1] == token).sum() for token in top])
    assert counts.sum() == 8 * 128
    statistic = ((counts - 1024 * expected) ** 2 / (1024 * expected)).sum()
    assert statistic < 25.0  # chi-square with 2 degrees of freedom: exceeded once in 270,000 runs


# ---- lengths, ends, padding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_len", [1, 2, 5, 7])
def test_never_a_token_more_than_asked_for(load: Loader, pair: QSPECModel, max_len: int) -> None:
    seen = alone(pair.verify, GREEDY)[:, : PREFIX.shape[1] + max_len]
    assert torch.equal(autoregressive_sampling(PREFIX, pair.verify, max_len, temperature=0), seen)
    assert torch.equal(qspec_sampling(PREFIX, pair, max_len=max_len, gamma=8, temperature=0), seen)
    assert torch.equal(speculative_sampling(PREFIX, load("gpt2"), pair.verify, max_len, 8, temperature=0), seen)


def test_a_text_ends_at_the_end_of_sequence_token_and_shorter_rows_are_padded_with_it(pair: QSPECModel) -> None:
    (eos,) = pair.verify.eos_token_ids
    batch = qspec_sampling(
        PREFIX.repeat(40, 1), pair, max_len=60, temperature=1.5, random_seed=3, gamma=8)
    ended = [row.tolist()[PREFIX.shape[1] :] for row in batch]
    stopped = [row for row in ended if eos in row]
    assert 0 < len(stopped) < len(ended), "the seed was chosen so that some rows end and some do not"
    assert all(set(row[row.index(eos) :]) == {eos} for row in stopped)
    assert batch.dtype == torch.int64
    assert batch.shape == (40, PREFIX.shape[1] + 60)


def test_a_row_ends_where_the_context_is_full(load: Loader) -> None:
    model = load("llama")
    prefix = torch.arange(3, model.max_length - 1).unsqueeze(0) % 200 + 3
    for text in (
        autoregressive_sampling(prefix, model, 50, temperature=0),
        speculative_sampling(prefix, load("gpt2"), model, 50, 8, temperature=0),
    ):
        assert text.shape == (1, model.max_length)


def test_padding_of_prompts_is_left_out(load: Loader) -> None:
    rows = alone(load("llama"), GREEDY, RAGGED, attention_mask=MASK)
    for row, prompt in zip(rows, ([17], [5, 9, 5, 9], [250, 4, 8]), strict=True):
        single = alone(load("llama"), GREEDY, torch.tensor([prompt]))[0]
        assert row[: len(single)].tolist() == single.tolist()


def test_more_rows_than_slots(load: Loader, pair: QSPECModel) -> None:
    prefix = torch.arange(40).unsqueeze(1) + 3
    expected = autoregressive_sampling(prefix, pair.verify, 6, temperature=0)
    assert torch.equal(qspec_sampling(prefix, pair, max_len=6, temperature=0), expected)
    assert torch.equal(speculative_sampling(prefix, load("gpt2"), pair.verify, 6, temperature=0), expected)


# ---- what cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_len": 0}, "max_len: must be at least 1"),
        ({"gamma": -1}, "gamma: must be at least 0"),
        ({"gamma": 9}, "load it with max_draft_length=9"),
        ({"temperature": float("nan")}, "temperature: "),
        ({"temperature": -1.0}, "temperature: "),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 1.5}, "top_p: "),
        ({"random_seed": -1}, "random_seed: "),
        ({"prefix": torch.tensor([1, 2])}, r"\[batch, length\]"),
        ({"prefix": torch.tensor([[1.0]])}, "integer"),
        ({"prefix": torch.tensor([[320]])}, "320 is outside the vocabulary of 320"),
        ({"prefix": torch.tensor([[-1]])}, "outside the vocabulary"),
        ({"prefix": torch.zeros(1, 0, dtype=torch.int64)}, "has no token"),
        ({"prefix": torch.ones(1, 128, dtype=torch.int64)}, "128 tokens long"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask: has shape"),
        ({"attention_mask": torch.zeros(1, 5)}, "has no token"),
    ],
)
def test_bad_input_is_named(pair: QSPECModel, change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        qspec_sampling(**{"prefix": PREFIX, "model": pair, "max_len": 4, **change})  # type: ignore[arg-type]
    assert qspec_sampling(PREFIX, pair, max_len=1).shape == (1, 6), "and leaves the model usable"


def test_all_bad_parameters_are_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        TextRequest(max_len=0, temperature=-1.0, top_k=-1, top_p=2.0, random_seed=-1, gamma=-1)
    assert [violation.field for violation in caught.value.violations] == [
        "max_len", "temperature", "top_k", "top_p", "random_seed", "gamma"]


def test_what_only_drafts_cannot_verify(load: Loader, pair: QSPECModel) -> None:
    with pytest.raises(InvalidInput, match=r"model: QuantizedModel\(.*'w8a8'\) only drafts"):
        autoregressive_sampling(PREFIX, pair.draft, 4)
    with pytest.raises(InvalidInput, match="target_model: .* only drafts"):
        speculative_sampling(PREFIX, load("gpt2"), pair.draft, 4)


def test_a_broken_drafter_is_an_error_and_no_slow_text(pair: QSPECModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = pair.verify.engines

    def broken(_batch: object) -> None:
        raise InvalidInput.field("batch", "planted")

    drafter: Drafter = engines.drafter
    with monkeypatch.context() as patch:
        patch.setattr(drafter, "draft", broken)
        with pytest.raises(InvalidInput, match="planted"):
            qspec_sampling(PREFIX, pair, max_len=4)
    batch = speculative_texts(PREFIX, pair.draft, pair.verify, TextRequest(max_len=8, gamma=2, temperature=0))
    assert batch.acceptance is not None, "and the next call drafts again"
