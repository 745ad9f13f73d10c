"""Paged attention: what it is in float64, and that a row depends on nothing but itself and the keys that it sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec.engine.passes import SequenceRows, VerifyPass
from qspec.kernels import reference
from qspec.kernels.paged_attention import (
    BlockSpan,
    attend_blocks,
    attend_with_tail,
    causal_mask,
    probe_attention_tiles,
    write_rows,
)
from qspec.kernels.row_tiles import CANDIDATE_ROWS, RowTiles

BLOCK = 64
SHAPES = [(4, 2, 16), (9, 3, 64), (4, 1, 8), (2, 2, 80)]  # heads, kv_heads, head_dim
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 4 * BLOCK + 5]


def numbers(*shape: int, seed: int) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class PagedSequence:
    """Queries, keys and values of one sequence, and attention over a cache of its blocks at given places."""

    def __init__(
        self, shape: tuple[int, int, int], length: int, block_ids: tuple[int, ...], block: int = BLOCK
    ) -> None:
        self.heads, self.kv_heads, head_dim = shape
        self.q = numbers(length, self.heads, head_dim, seed=1)
        self.k = numbers(length, self.kv_heads, head_dim, seed=2)
        self.v = numbers(length, self.kv_heads, head_dim, seed=3)
        self.span = BlockSpan(block_ids)
        self.cache = numbers(2, 1, max(block_ids) + 2, self.kv_heads, block, head_dim, seed=4)  # stale entries
        self.tiles = probe_attention_tiles(self.heads, self.kv_heads, head_dim, block, CANDIDATE_ROWS)

    def attend(self, chunks: list[int], padded: tuple[int, ...] = (1,)) -> Tensor:
        """Enter the sequence in chunks, as the verifier does: ``[length, heads·D]``."""
        parts, start = [], 0
        for rows in chunks:
            sequence = SequenceRows((0,) * rows, start, self.span)
            verify_pass = VerifyPass(
                [sequence], *self.cache, heads=self.heads, attention_tiles=self.tiles, linear_tiles=RowTiles(padded)
            )
            q, k, v = (
                torch.cat([t[start : start + rows], t.new_zeros(len(verify_pass.token_ids) - rows, *t.shape[1:])])
                for t in (self.q, self.k, self.v)
            )
            parts.append(verify_pass(0, q, k, v)[:rows])
            start += rows
        return torch.cat(parts)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_attention_is_its_reference(shape: tuple[int, int, int], length: int) -> None:
    sequence = PagedSequence(shape, length, (0, 1, 2, 3, 4))
    expected = reference.attention(sequence.q, sequence.k, sequence.v, torch.arange(length))
    torch.testing.assert_close(sequence.attend([length]).double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("shape", "block", "threads"),
    [*((shape, block, 1) for shape in SHAPES for block in (16, BLOCK)), *((shape, 16, 2) for shape in SHAPES[:2])],
    indirect=["threads"],
)
def test_a_row_has_the_same_bits_in_any_chunk(shape: tuple[int, int, int], block: int, threads: int) -> None:
    length = 3 * block + 5
    sequence = PagedSequence(shape, length, (0, 1, 2, 3, 4), block)
    at_once = sequence.attend([length])
    assert torch.equal(sequence.attend([1] * length), at_once)
    for chunk in (3, 16, 40):
        chunks = [chunk] * (length // chunk) + [length % chunk] * (length % chunk > 0)
        assert torch.equal(sequence.attend(chunks, padded=(4, 64)), at_once)


@pytest.mark.parametrize("shape", SHAPES)
def test_gathered_blocks_give_the_bits_of_adjacent_ones(shape: tuple[int, int, int]) -> None:
    length = 4 * BLOCK + 5
    adjacent = PagedSequence(shape, length, (0, 1, 2, 3, 4)).attend([length])
    for block_ids in ((7, 2, 5, 0, 1), (0, 1, 2, 3, 9)):
        assert torch.equal(PagedSequence(shape, length, block_ids).attend([100, 161]), adjacent)


def test_adjacent_blocks_are_read_in_place() -> None:
    cache = torch.arange(10.0).view(10, 1, 1, 1)
    assert BlockSpan((4, 5, 6)).read(cache, 2).data_ptr() == cache[4].data_ptr()
    assert BlockSpan((4, 5, 2)).read(cache, 2).data_ptr() == cache[4].data_ptr()
    gathered = BlockSpan((4, 5, 2)).read(cache, 3)
    assert gathered.flatten().tolist() == [4, 5, 2]


def test_sequences_of_one_batch_do_not_meet() -> None:
    shape = (4, 2, 16)
    first, second = PagedSequence(shape, 70, (0, 1)), PagedSequence(shape, 33, (4, 2))
    alone = torch.cat([first.attend([70]), second.attend([33])])
    keys, values = numbers(2, 1, 6, 2, BLOCK, 16, seed=9)
    both = VerifyPass(
        [SequenceRows((0,) * 70, 0, first.span), SequenceRows((0,) * 33, 0, second.span)],
        keys, values, heads=4, attention_tiles=first.tiles, linear_tiles=RowTiles((1,)),
    )
    q, k, v = (torch.cat([getattr(first, name), getattr(second, name)]) for name in "qkv")
    assert torch.equal(both(0, q, k, v), alone)
    assert both.positions.tolist() == [*range(70), *range(33)]


def test_rows_are_written_where_they_belong() -> None:
    cache = torch.zeros(3, 2, 4, 5)
    rows = numbers(2, 2, 5, seed=0)
    write_rows(cache, rows, torch.tensor([2, 0]), torch.tensor([3, 1]))
    assert torch.equal(cache[2, :, 3], rows[0])
    assert torch.equal(cache[0, :, 1], rows[1])
    assert int((cache != 0).sum()) == 20


def test_a_masked_block_changes_nothing() -> None:
    q, keys, values = numbers(3, 4, 16, seed=1), numbers(5, 2, BLOCK, 16, seed=2), numbers(5, 2, BLOCK, 16, seed=3)
    at = torch.tensor([5, 60, 127])
    few = attend_blocks(q, keys[:2], values[:2], causal_mask(at, 2, BLOCK, 2, 2))
    many = attend_blocks(q, keys, values, causal_mask(at, 5, BLOCK, 2, 2))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("context", [0, 1, 63, 64, 65, 130])
@pytest.mark.parametrize("tail", [1, 2, 5])
def test_attention_with_a_tail_is_its_reference(shape: tuple[int, int, int], context: int, tail: int) -> None:
    heads, kv_heads, head_dim = shape
    blocks = -(-context // BLOCK)
    q = numbers(heads, head_dim, seed=1)
    keys, values = numbers(2, blocks, kv_heads, BLOCK, head_dim, seed=2)
    tail_keys, tail_values = numbers(2, kv_heads, 8, head_dim, seed=3)[:, :, :tail]
    mask = causal_mask(torch.tensor([context - 1]), blocks, BLOCK, kv_heads, heads // kv_heads)
    result = attend_with_tail(q, keys, values, mask, tail_keys, tail_values)
    k, v = (
        torch.cat([
            committed.transpose(1, 2).reshape(-1, kv_heads, head_dim)[:context], ending.transpose(0, 1)
        ])
        for committed, ending in ((keys, tail_keys), (values, tail_values))
    )
    expected = reference.attention(q[None], k, v, torch.tensor([context + tail - 1]))[0]
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=5e-6)
