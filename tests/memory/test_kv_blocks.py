"""The block allocator: no block is lost, none held twice, and neighbours are preferred."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.memory.kv_blocks import BlockAllocator

NUM_BLOCKS = 24


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    operations=st.lists(
        st.tuples(st.integers(0, 4), st.one_of(st.just("release"), st.integers(0, NUM_BLOCKS + 2))), max_size=40
    )
)
def test_blocks_are_neither_lost_nor_doubled(operations: list[tuple[int, int | str]]) -> None:
    allocator = BlockAllocator(NUM_BLOCKS)
    held: list[list[int]] = [[] for _ in range(5)]
    for who, what in operations:
        before, free = list(held[who]), allocator.free_blocks
        if isinstance(what, int):
            done = allocator.extend(held[who], what)
            assert done == (what <= free)
            assert held[who][: len(before)] == before, "a sequence's blocks stay where they are"
            assert len(held[who]) == len(before) + (what if done else 0)
        else:
            allocator.release(held[who])
            assert held[who] == []
        everything = [block for blocks in held for block in blocks]
        assert len(set(everything)) == len(everything)
        assert set(everything) <= set(range(NUM_BLOCKS))
        assert allocator.free_blocks == NUM_BLOCKS - len(everything)


def test_a_lone_sequence_gets_adjacent_blocks() -> None:
    allocator, held = BlockAllocator(NUM_BLOCKS), list[int]()
    for _ in range(NUM_BLOCKS):
        assert allocator.extend(held, 1)
    assert held == list(range(held[0], held[0] + NUM_BLOCKS))
    assert not allocator.extend(held, 1)


def test_two_growing_sequences_stay_adjacent_for_a_while() -> None:
    allocator, first, second = BlockAllocator(NUM_BLOCKS), list[int](), list[int]()
    allocator.extend(first, 2)
    allocator.extend(second, 2)
    for _ in range(6):
        allocator.extend(first, 1)
        allocator.extend(second, 1)
    for held in (first, second):
        assert held == list(range(held[0], held[0] + 8))


def test_released_blocks_are_used_again() -> None:
    allocator, first, second = BlockAllocator(4), list[int](), list[int]()
    assert allocator.extend(first, 3)
    assert not allocator.extend(second, 2)
    assert second == []
    allocator.release(first)
    assert allocator.extend(second, 4)
    assert sorted(second) == [0, 1, 2, 3]
