"""Draws as 32-bit numbers: whatever a request may ask for can be written, and means the same."""

from __future__ import annotations

import numpy
import pytest

from qspec.kernels.triton.row_draws import Field, PlacedDraw, RowDraw, write_draws
from qspec.sampling_options import MAX_TEMPERATURE, MIN_TEMPERATURE, AcceptanceRule, Sampling


def written(sampling: Sampling) -> dict[Field, int]:
    """The column of a row that draws so."""
    matrix = numpy.zeros((len(Field), 3), dtype=numpy.int32)
    write_draws(matrix, [PlacedDraw(2, 0, RowDraw(sampling=sampling, drafted=7, distribution=5))], [11])
    assert not matrix[:, :2].any(), "other columns"
    return {field: int(matrix[field, 2]) for field in Field}


def as_float(bits: int) -> float:
    return float(numpy.array([bits], dtype=numpy.int32).view(numpy.float32)[0])


def test_a_draw_is_written_to_its_column() -> None:
    column = written(Sampling(
        temperature=0.5, top_k=40, top_p=0.75, min_p=0.125, seed=2**64 - 2, choice=3, rule=AcceptanceRule.REJECTION))
    assert [as_float(column[field]) for field in (Field.TEMPERATURE, Field.TOP_P, Field.MIN_P)] == [0.5, 0.75, 0.125]
    assert (column[Field.TOP_K], column[Field.SEED_LOW], column[Field.SEED_HIGH]) == (40, -2, -1)
    assert (column[Field.CHOICE], column[Field.REJECTS]) == (3 << 8, 1)
    assert [column[field] for field in (Field.DRAFTED, Field.DISTRIBUTION, Field.POSITION, Field.ROW)] == [7, 5, 11, 0]


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**32 - 1])
def test_more_tokens_than_there_are_remain_more(top_k: int) -> None:
    assert written(Sampling(temperature=1, top_k=top_k))[Field.TOP_K] == 2**31 - 1


@pytest.mark.parametrize("share", [5e-324, 1e-46, 1e-39, 1.2e-38])
def test_the_smallest_share_is_still_one(share: float) -> None:
    column = written(Sampling(temperature=1, top_p=share, min_p=share))
    assert 0 < as_float(column[Field.TOP_P]) < 1.21e-38
    assert 0 <= as_float(column[Field.MIN_P]) <= 1.21e-38


@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, MAX_TEMPERATURE])
def test_every_temperature_has_room(temperature: float) -> None:
    assert as_float(written(Sampling(temperature=temperature))[Field.TEMPERATURE]) == pytest.approx(temperature)
