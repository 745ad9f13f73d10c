"""Draws and acceptance on a GPU are those of ``qspec.sampling`` and ``qspec.acceptance``, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from qspec.acceptance import acceptance_probability, residual_weights
from qspec.filters import filtered_probs
from qspec.kernels.triton.draws import DrawPlan, draw_tokens
from qspec.kernels.triton.elementwise import Pieces
from qspec.kernels.triton.noise import noise_words
from qspec.kernels.triton.row_draws import DrawKind, Field, PlacedDraw, RowDraw, draw_kind, drawn_on_gpu, write_draws
from qspec.noise import NoiseKey, Purpose, uniform
from qspec.sampling import draw, token_probs
from qspec.sampling_options import AcceptanceRule, Sampling

WIDTH = 2500
SAMPLINGS = {
    "greedy": Sampling(),
    "plain": Sampling(temperature=1.0, seed=2**63 + 5),
    "cold": Sampling(temperature=0.3, seed=4, choice=3),
    "top_k": Sampling(temperature=0.9, seed=5, top_k=3),
    "top_p": Sampling(temperature=1.5, seed=6, top_p=0.7),
    "nearly all": Sampling(temperature=3.0, seed=6, top_p=0.9999),
    "min_p": Sampling(temperature=1.2, seed=7, min_p=0.2),
    "all": Sampling(temperature=0.9, seed=8, top_k=40, top_p=0.95, min_p=0.01),
    "beyond 32 bits": Sampling(temperature=1e6, seed=9, top_k=2**32 - 1, min_p=5e-324),
    "almost nothing": Sampling(temperature=1e3, seed=10, top_p=5e-324),
}


@triton.jit
def _words_kernel(out, seed_low, seed_high, position, tag, COUNT: tl.constexpr):  # noqa: N803
    low, high = tl.load(seed_low), tl.load(seed_high)
    words = noise_words(low, high, tl.load(position), tl.load(tag), 0, COUNT)
    tl.store(out + tl.arange(0, COUNT), words.to(tl.int32, bitcast=True))


@pytest.mark.parametrize("purpose", Purpose)
def test_noise_is_equal_bit_for_bit(purpose: Purpose, device: torch.device) -> None:
    key, position = NoiseKey(seed=0xFEDCBA9876543210, choice=77), 123456
    halves = numpy.array([key.seed], dtype=numpy.uint64).view(numpy.int32)
    arguments = [torch.tensor([int(each)], dtype=torch.int32, device=device)
                 for each in (*halves, position, int(purpose) + (key.choice << 8))]
    out = torch.zeros(64, dtype=torch.int32, device=device)
    _words_kernel[(1,)](out, *arguments, COUNT=64)
    words = out.cpu().numpy().view(numpy.uint32).astype(numpy.float64)
    assert numpy.array_equal((words + 0.5) * 2.0**-32, uniform(key, position, purpose, 64))


def test_what_kernels_cannot_draw_is_left_to_the_host() -> None:
    assert all(map(drawn_on_gpu, SAMPLINGS.values()))
    for changed in (Sampling(logprobs=0), Sampling(temperature=1.0, typical_p=0.9),
                    Sampling(repetition_penalty=1.1), Sampling(logit_bias=((3, 1.0),))):
        assert not drawn_on_gpu(changed)
    assert draw_kind([Sampling()]) is DrawKind.GREEDY
    assert draw_kind([Sampling(), SAMPLINGS["plain"]]) is DrawKind.DRAWN
    assert draw_kind([Sampling(), SAMPLINGS["min_p"]]) is DrawKind.FILTERED
    assert draw_kind([Sampling(temperature=1.0, rule=AcceptanceRule.REJECTION)]) is DrawKind.FILTERED
    assert draw_kind([Sampling(rule=AcceptanceRule.REJECTION)]) is DrawKind.GREEDY


def logits_of(rows: int, source: torch.Generator) -> Tensor:
    """As a language model's: a few are large. ``[2, rows, WIDTH]``, to be added up."""
    numbers = torch.randn(2, rows, WIDTH, generator=source)
    numbers[0] += torch.rand(rows, WIDTH, generator=source).log().neg() * 0.7
    return numbers


def plan_of(draws: Sequence[RowDraw], device: torch.device, first: int, distributions: Tensor | None = None,
            step: Tensor | None = None) -> DrawPlan:
    matrix = numpy.zeros((len(Field), len(draws) + 3), dtype=numpy.int32)
    placed = [PlacedDraw(column, column, each) for column, each in enumerate(draws)]
    write_draws(matrix, placed, range(first, first + len(draws)))
    sent = torch.from_numpy(matrix).to(device)
    return DrawPlan(sent, sent[Field.POSITION], distributions, step)


def drawn(numbers: Tensor, draws: Sequence[RowDraw], device: torch.device, kind: DrawKind, first: int,
          distributions: Tensor | None = None) -> tuple[list[int], list[int]]:
    """Tokens, and which drafts stand; ``first``: position of the first row."""
    chosen, stands = torch.full((2, len(draws)), -7, dtype=torch.int32, device=device)
    pieces = numbers.clone().to(device)
    product = Pieces(pieces, torch.ones(WIDTH, device=device))
    draw_tokens(product, plan_of(draws, device, first, distributions), kind, pieces[0], chosen, stands)
    return chosen.tolist(), stands.tolist()


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_row_draws_what_the_reference_draws(name: str, device: torch.device, source: torch.Generator) -> None:
    sampling, rows = SAMPLINGS[name], 12
    numbers = logits_of(rows, source)
    probs = token_probs(numbers[0] + numbers[1], sampling)
    key = NoiseKey(sampling.seed, sampling.choice)
    expected = [draw(probs[row], key, 100 + row, Purpose.COUPLED) for row in range(rows)]
    draws = [RowDraw(sampling=sampling, drafted=expected[row] + row % 2) for row in range(rows)]
    tokens, stands = drawn(numbers, draws, device, draw_kind([sampling]), 99)
    assert tokens == expected
    assert stands == [1 - row % 2 for row in range(rows)]
    assert len(set(expected)) > 3, "the texts of this test can differ"


def test_a_row_does_not_depend_on_the_rows_beside_it(device: torch.device, source: torch.Generator) -> None:
    every = [RowDraw(sampling=sampling) for sampling in SAMPLINGS.values()]
    numbers = logits_of(len(every), source)
    together, _ = drawn(numbers, every, device, DrawKind.FILTERED, 5)
    for row, each in enumerate(every):
        alone, _ = drawn(numbers[:, row : row + 1], [each], device, draw_kind([each.sampling]), 5 + row)
        assert alone == together[row : row + 1]


def test_of_equals_at_the_bound_top_p_keeps_the_lowest_tokens(device: torch.device) -> None:
    """Ten equal logits and a share of 0.35: four tokens, whatever the noise; top-k keeps all that tie."""
    numbers = torch.full((1, 1, WIDTH), -40.0)
    tied = [3 + 211 * index for index in range(10)]
    numbers[:, :, tied] = 2.0
    for sampling, kept in (
        (Sampling(temperature=1.0, top_p=0.35), tied[:4]), (Sampling(temperature=1.0, top_k=4), tied)
    ):
        reference = filtered_probs(numbers[0], sampling)[0]
        assert reference.nonzero().squeeze(-1).tolist() == kept
        draws = [RowDraw(sampling=sampling)] * 30
        tokens, _ = drawn(numbers.expand(1, 30, WIDTH), draws, device, DrawKind.FILTERED, 0)
        assert set(tokens) == set(kept)


@pytest.mark.parametrize("filters", [{}, {"top_k": 20, "top_p": 0.9, "min_p": 0.02}], ids=["whole", "filtered"])
def test_rejection_is_the_references(
    filters: dict[str, float], device: torch.device, source: torch.Generator
) -> None:
    """Drafts come from distributions that a draft step left; each row says what it would do with its own."""
    sampling = Sampling(temperature=1.1, seed=99, rule=AcceptanceRule.REJECTION, **filters)  # type: ignore[arg-type]
    rows, key = 24, NoiseKey(99)
    target_numbers = logits_of(rows, source)
    draft_numbers = target_numbers + 0.4 * torch.randn(2, rows, WIDTH, generator=source)
    left = torch.zeros(rows, WIDTH, device=device)
    chosen = torch.full((rows,), -7, dtype=torch.int32, device=device)
    pieces = draft_numbers.clone().to(device)
    draws = [RowDraw(sampling=sampling, distribution=row - 1) for row in range(rows)]
    plan = plan_of(draws, device, 50, left, torch.ones(1, dtype=torch.int32, device=device))  # step 1: a row further on
    draw_tokens(Pieces(pieces, torch.ones(WIDTH, device=device)), plan, DrawKind.FILTERED, pieces[0], chosen)
    draft = token_probs(draft_numbers[0] + draft_numbers[1], sampling)
    drafted = [draw(draft[row], key, 51 + row, Purpose.DRAFT) for row in range(rows)]
    assert chosen.tolist() == drafted
    assert torch.allclose(left.cpu(), draft, atol=1e-6, rtol=1e-5)
    left[4] = token_probs(target_numbers[0] + target_numbers[1], sampling)[4].to(device)  # nothing is left of row 4
    draws = [RowDraw(sampling=sampling, drafted=-1 if row % 6 == 5 else drafted[row],
                     distribution=row) for row in range(rows)]
    tokens, stands = drawn(target_numbers, draws, device, DrawKind.FILTERED, 50, left)
    target = token_probs(target_numbers[0] + target_numbers[1], sampling)
    for row in range(rows):
        if row % 6 == 5:
            assert (tokens[row], stands[row]) == (draw(target[row], key, 51 + row, Purpose.BONUS), 0)
            continue
        keep = float(acceptance_probability(target[row], left[row].cpu())[drafted[row]])
        assert stands[row] == (float(uniform(key, 51 + row, Purpose.ACCEPT, 1)[0]) < keep)
        if row != 4:
            assert tokens[row] == draw(residual_weights(target[row], left[row].cpu()), key, 51 + row, Purpose.RESIDUAL)
    assert 0 < sum(stands) < rows - 4
