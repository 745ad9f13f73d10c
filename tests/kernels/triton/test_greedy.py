from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from qspec.kernels.triton.elementwise import Pieces
from qspec.kernels.triton.greedy import greedy_tokens


@pytest.mark.parametrize("width", [100, 2048, 5000])
def test_the_largest_logit_and_of_equals_the_lowest_token(
    width: int, device: torch.device, source: torch.Generator
) -> None:
    numbers = torch.randn(2, 5, width, generator=source)
    numbers[:, 0, [7, 90, width - 1]] = 50.0
    numbers[:, 1, width - 1] = 50.0
    numbers[:, 2] = -1e30
    numbers[:, 3] = float("-inf")
    numbers[:, 4] = 0.0
    numbers[1, 4, 60] = 1e-4
    numbers[0, 4, 61] = 1e-2
    scales = torch.ones(width)
    scales[60] = 1024.0  # the largest of row 4 by its scale
    numbers[:, :2, 60] = 0.0
    out = torch.full((5,), -1, dtype=torch.int32, device=device)
    greedy_tokens(Pieces(numbers.to(device), scales.to(device)), out)
    assert out.tolist() == [7, width - 1, 0, 0, 60]
