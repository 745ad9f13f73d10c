from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qspec.errors import InvalidInput
from qspec.kernels import reference
from qspec.kernels.triton.attention import AttentionWorkspace, Context, Rows, attend, plan_tiles
from qspec.kernels.triton.input_order import arrange

BLOCK = 16


class Cache:
    """Keys and values of some sequences in scattered blocks; unused entries are NaN."""

    def __init__(
        self, lengths: list[int], kv_heads: int, head_dim: int, source: torch.Generator, device: torch.device,
        block: int = BLOCK,
    ) -> None:
        widest = max(-(-length // block) for length in lengths)
        self.table = torch.randperm(len(lengths) * widest, generator=source).view(len(lengths), widest)
        self.rows = [torch.randn(2, length, kv_heads, head_dim, generator=source).half() for length in lengths]
        blocks = torch.full((2, self.table.numel(), kv_heads, block, head_dim), float("nan")).half()
        for slot, rows in enumerate(self.rows):
            for position in range(rows.shape[1]):
                blocks[:, self.table[slot, position // block], :, position % block] = rows[:, position]
        self.keys, self.values = blocks.to(device)
        self.block_table = self.table.int().to(device)


def _reference(q: Tensor, rows: Tensor, positions: list[int]) -> Tensor:
    return reference.attention(q, rows[0], rows[1], torch.tensor(positions))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block"), [(6, 2, 64, 16), (4, 1, 32, 64), (4, 1, 32, 256)])
@pytest.mark.parametrize(
    "starts", [[(0, 1)], [(70, 3), (0, 1), (255, 2)], [(300, 30), (5, 1)]], ids=["first", "verify", "prefill"])
def test_verify_rows(
    heads: int, kv_heads: int, head_dim: int, block: int, starts: list[tuple[int, int]], device: torch.device,
    source: torch.Generator,
) -> None:  # fmt: skip
    """``starts``: (first position, rows) of each sequence."""
    cache = Cache([start + count for start, count in starts], kv_heads, head_dim, source, device, block)
    rows = sum(count for _, count in starts)
    q = torch.randn(rows + 1, heads, head_dim, generator=source).half()  # the last row is padding
    positions = [start + index for start, count in starts for index in range(count)]
    slots = [slot for slot, (_, count) in enumerate(starts) for _ in range(count)]
    tiles = plan_tiles([(slot, count) for slot, (_, count) in enumerate(starts)], heads // kv_heads, 8)
    workspace = AttentionWorkspace.of(512, rows + 1, heads, head_dim, device)
    for tensor in (workspace.sums, workspace.maxima, workspace.totals):
        tensor.fill_(float("nan"))
    out = torch.full((rows + 1, heads * head_dim), float("nan"), dtype=torch.float16, device=device)
    attend(
        q.to(device), Context(cache.keys, cache.values, cache.block_table),
        Rows(torch.tensor([*positions, 0]).int().to(device), torch.tensor([*slots, -1]).int().to(device),
             tiles.to(device)),
        workspace, out, pieces=2)
    at = 0
    for slot, (start, count) in enumerate(starts):
        expected = _reference(q[at : at + count], cache.rows[slot], list(range(start, start + count)))
        assert torch.allclose(out[at : at + count].cpu().double(), arrange(expected), rtol=4e-3, atol=4e-3)
        at += count
    assert out[-1].isnan().all()


def test_pieces_without_keys_change_no_bit(device: torch.device, source: torch.Generator) -> None:
    """So graphs may be captured for more pieces than a context has."""
    heads, kv_heads, head_dim, starts = 6, 2, 64, [(20, 2), (300, 1)]
    cache = Cache([start + count for start, count in starts], kv_heads, head_dim, source, device)
    q = torch.randn(3, heads, head_dim, generator=source).half().to(device)
    rows = Rows(
        torch.tensor([20, 21, 300]).int().to(device), torch.tensor([0, 0, 1]).int().to(device),
        plan_tiles([(0, 2), (1, 1)], heads // kv_heads, 3).to(device))
    found = []
    for pieces in (2, 4, 8):
        workspace = AttentionWorkspace.of(2048, 3, heads, head_dim, device)
        for tensor in (workspace.sums, workspace.maxima, workspace.totals):
            tensor.fill_(float("nan"))
        out = torch.empty(3, heads * head_dim, dtype=torch.float16, device=device)
        attend(q, Context(cache.keys, cache.values, cache.block_table), rows, workspace, out, pieces=pieces)
        found.append(out)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(("step", "block"), [(0, 16), (2, 16), (2, 64)])
def test_draft_rows(step: int, block: int, device: torch.device, source: torch.Generator) -> None:
    heads, kv_heads, head_dim, k_max, lengths = 6, 2, 64, 4, [40, 300, 0, 256]
    cache = Cache([length + step + 1 for length in lengths], kv_heads, head_dim, source, device, block)
    tails = torch.full((2, len(lengths), kv_heads, k_max, head_dim), float("nan")).half()
    for slot, (length, rows) in enumerate(zip(lengths, cache.rows, strict=True)):
        tails[:, slot, :, : step + 1] = rows[:, length:].transpose(1, 2)
        for position in range(length, length + step + 1):  # the blocks do not hold what lies in the tail
            where = int(cache.table[slot, position // block])
            cache.keys[where, :, position % block] = float("nan")
            cache.values[where, :, position % block] = float("nan")
    order = [1, 3, 0, 2]
    q = torch.randn(len(order), heads, head_dim, generator=source).half()
    positions = torch.tensor([lengths[slot] + step for slot in order])
    rows = Rows(
        positions.int().to(device), torch.tensor(order).int().to(device),
        plan_tiles([(slot, 1) for slot in order], heads // kv_heads, 4).to(device),
        torch.tensor(lengths).int().to(device))
    workspace = AttentionWorkspace.of(512, len(order), heads, head_dim, device)
    out = torch.empty(len(order), heads * head_dim, dtype=torch.float16, device=device)
    context = Context(cache.keys, cache.values, cache.block_table, *tails.to(device))
    attend(q.to(device), context, rows, workspace, out, rearrange=False)
    for row, slot in enumerate(order):
        expected = _reference(q[row : row + 1], cache.rows[slot], [lengths[slot] + step])
        assert torch.allclose(out[row : row + 1].cpu().double(), expected, rtol=4e-3, atol=4e-3)


def test_tiles_of_one_sequence_each() -> None:
    tiles = plan_tiles([(4, 1), (2, 40)], group=3, length=5)  # 21 rows of three queries fill a tile
    assert tiles.tolist() == [[0, 1, 4], [1, 21, 2], [22, 19, 2], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(InvalidInput, match="need 3 tiles"):
        plan_tiles([(4, 1), (2, 40)], group=3, length=2)
