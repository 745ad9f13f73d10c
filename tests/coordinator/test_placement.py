"""Which pair a request goes to, from what is known of load and caches; and the books of what may be cached where."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.placed_prefixes import PlacedPrefixes
from coordinator.placement import NEIGHBOUR_TOKENS, PairLoad, choose_pair
from qspec.prefix_hash import prefix_hashes
from qspec.room import Room


def load(sequences: int = 0, *, slots: int = 4, blocks: int = 100, idle: bool | None = None) -> PairLoad:
    """A pair with blocks of 16 positions."""
    empty = sequences == 0 if idle is None else idle
    return PairLoad(sequences=sequences, room=Room(free_slots=slots, free_blocks=blocks, block_size=16, idle=empty))


def test_the_emptiest_pair_gets_it() -> None:
    assert choose_pair(20, [load(2), load(1), load(3)], [0, 0, 0]) == 1


def test_of_equals_the_one_with_most_blocks_gets_it_and_then_the_first() -> None:
    assert choose_pair(20, [load(blocks=90), load(blocks=99), load(blocks=99)], [0, 0, 0]) == 1


def test_a_cached_beginning_outweighs_neighbours_as_far_as_it_is_long() -> None:
    busy, idle = load(3), load(0)
    assert choose_pair(1000, [busy, idle], [3 * NEIGHBOUR_TOKENS + 16, 0]) == 0
    assert choose_pair(1000, [busy, idle], [3 * NEIGHBOUR_TOKENS - 16, 0]) == 1


def test_a_pair_without_room_is_passed_over_whatever_it_has_cached() -> None:
    assert choose_pair(31, [load(1, slots=0), load(1, blocks=1), load(9)], [31, 31, 0]) == 2
    assert choose_pair(31, [load(1, slots=0), load(1, blocks=1), None], [31, 31, 0]) is None
    assert choose_pair(31, [load(1, blocks=2)], [0]) == 0, "31 tokens and one more fill two blocks"
    assert choose_pair(32, [load(1, blocks=2)], [0]) is None


def test_what_fits_into_an_empty_cache_only_goes_to_an_idle_pair() -> None:
    assert choose_pair(5000, [load(1), load(0)], [0, 0]) == 1


@given(
    st.integers(1, 400), st.lists(
        st.none() | st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 30), st.integers(0, 400)),
        max_size=5))
def test_a_request_waits_only_where_nothing_fits_and_the_chosen_pair_is_the_cheapest(
    tokens: int, pairs: list[tuple[int, int, int, int] | None]
) -> None:
    loads = [None if pair is None else load(pair[0], slots=pair[1], blocks=pair[2]) for pair in pairs]
    cached = [0 if pair is None else pair[3] for pair in pairs]
    fitting = [index for index, one in enumerate(loads) if one is not None and one.room.fits(tokens)]
    chosen = choose_pair(tokens, loads, cached)
    if chosen is None:
        assert not fitting
        return
    cost = {
        index: max(tokens - cached[index], 0) + NEIGHBOUR_TOKENS * one.sequences
        for index in fitting if (one := loads[index]) is not None
    }
    assert chosen in fitting and cost[chosen] == min(cost.values())


def test_placed_requests_use_room_up() -> None:
    left = load(0, slots=2, blocks=10).with_one_more(31)
    assert (left.sequences, left.room.free_slots, left.room.free_blocks, left.room.idle) == (1, 1, 8, False)


def test_blocks_that_others_hold_need_no_room() -> None:
    names = prefix_hashes(range(100), 16)
    empty = Room(free_slots=9, free_blocks=8, block_size=16, idle=True, shares=True)
    room = empty.less(100, names)
    assert (room.free_blocks, room.fits(100), room.fits(100, names)) == (1, False, True)
    assert room.less(100, names).free_blocks == 0 and not room.less(100, names).fits(100, names)
    assert not room.fits(100, prefix_hashes(range(100), 16, "salt"))
    assert not room.fits(40, prefix_hashes(range(1, 41), 16))
    running = replace(room, coming=frozenset(), held=frozenset(names[:3]))
    assert (running.fits(63, names[:3]), running.fits(64, names[:4])) == (True, False)
    apart = replace(empty, shares=False).less(100, names)
    assert not apart.fits(100, names) and not apart.coming


def test_only_a_common_beginning_of_whole_blocks_counts_as_cached() -> None:
    books = PlacedPrefixes(10)
    books.note(prefix_hashes([1, 2, 3, 4, 5, 6, 7], 2))
    assert books.cached_blocks(prefix_hashes([1, 2, 3, 4, 9, 9, 9, 9], 2)) == 2
    assert books.cached_blocks(prefix_hashes([1, 2, 3, 4, 5, 6, 7, 8], 2)) == 3, "the last block was not whole"
    assert books.cached_blocks(prefix_hashes([9, 2, 3, 4], 2)) == 0
    books.clear()
    assert books.cached_blocks(prefix_hashes([1, 2, 3, 4], 2)) == 0


def test_the_least_recently_used_is_forgotten_and_of_a_text_its_end_first() -> None:
    books = PlacedPrefixes(5)
    old, new = prefix_hashes([1] * 6, 2), prefix_hashes([2] * 6, 2)
    books.note(old)
    books.note(new)
    assert len(books) == 5
    assert (books.cached_blocks(old), books.cached_blocks(new)) == (2, 3)
    books.note(prefix_hashes([1, 1], 2))  # used again: now the other one has to go
    books.note(prefix_hashes([3] * 4, 2))
    assert books.cached_blocks(old) == 1 and books.cached_blocks(new) == 2
    nothing = PlacedPrefixes(0)
    nothing.note(old)
    assert nothing.cached_blocks(old) == 0
