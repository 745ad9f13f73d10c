"""Drafts take no block that somebody cannot do without, and share what is spare."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.draft_blocks import Holding, caps_within_blocks

HOLDINGS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 16), st.integers(0, 12)), min_size=1, max_size=6)


@given(found=HOLDINGS, spare=st.integers(-3, 20), block_size=st.sampled_from([1, 4, 16]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_more_blocks_are_taken_than_are_spare_and_none_is_left_without_need(
    found: list[tuple[int, int, int]], spare: int, block_size: int
) -> None:
    holdings = [Holding(committed, blocks * block_size, cap) for committed, blocks, cap in found]
    caps = caps_within_blocks(holdings, spare, block_size)
    own = [max(one.reserved_len // block_size, -(-one.committed_len // block_size)) for one in holdings]
    taken = [max(-(-(one.committed_len + cap) // block_size) - blocks, 0)
             for one, cap, blocks in zip(holdings, caps, own, strict=True)]
    assert all(0 <= cap <= one.cap for one, cap in zip(holdings, caps, strict=True))
    assert sum(taken) <= max(spare, 0)
    for one, cap, blocks in zip(holdings, caps, own, strict=True):
        assert cap >= min(one.cap, blocks * block_size - one.committed_len), "what it holds is its own"
    if sum(taken) < spare:
        assert caps == [one.cap for one in holdings]


def test_spare_blocks_go_round_from_the_oldest_on() -> None:
    full = Holding(8, 8, 8)  # of two blocks of 4, with two more to draft into
    assert caps_within_blocks([full, full, full], 0, 4) == [0, 0, 0]
    assert caps_within_blocks([full, full, full], 1, 4) == [4, 0, 0]
    assert caps_within_blocks([full, full, full], 4, 4) == [8, 4, 4]
    assert caps_within_blocks([full, full, full], 6, 4) == [8, 8, 8]
    assert caps_within_blocks([Holding(7, 8, 8), full], 1, 4) == [5, 0], "the last position of its own, and a block"
    assert caps_within_blocks([Holding(9, 8, 8)], 0, 4) == [3], "the block for its pending token comes in any case"
