"""Log-probabilities against their definition; a row's do not depend on the rows beside it."""

from __future__ import annotations

import math

import pytest
import torch

from qspec.token_logprobs import token_logprobs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_definition() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0], [3.0, 3.5, -9.0, 1.0]])
    for row, (token, found) in enumerate(zip((3, 0), token_logprobs(logits, [3, 0], 3), strict=True)):
        values = logits[row].tolist()
        log_total = math.log(sum(math.exp(value) for value in values))
        assert found.logprob == pytest.approx(values[token] - log_total, abs=1e-6)
        best = sorted(range(4), key=lambda each: -values[each])[:3]
        assert list(found.top_token_ids) == best
        assert list(found.top_logprobs) == pytest.approx([values[each] - log_total for each in best], abs=1e-6)


def test_none_of_the_best_and_more_than_there_are() -> None:
    logits = torch.zeros(1, 3)
    assert token_logprobs(logits, [1], 0)[0].top_token_ids == ()
    assert sorted(token_logprobs(logits, [1], 20)[0].top_token_ids) == [0, 1, 2]


@pytest.mark.parametrize("vocab_size", [7, 320, 5003, 70_001])
def test_a_row_does_not_depend_on_the_rows_beside_it(vocab_size: int) -> None:
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(2)) * 4
    tokens = [row % vocab_size for row in range(9)]
    together = token_logprobs(logits, tokens, 5)
    for rows in range(1, 10):
        assert token_logprobs(logits[:rows], tokens[:rows], 5) == together[:rows]
    torch.set_num_threads(2)
    assert token_logprobs(logits[:1], tokens[:1], 5) == together[:1]
