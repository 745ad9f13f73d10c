"""Blocks shared by content: counted rightly, found by nothing but their content, and given away oldest first."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qspec.memory.prefix_blocks import PrefixBlocks
from qspec.prefix_hash import prefix_hashes

NUM_BLOCKS = 12
BLOCK_SIZE = 2
TOKENS = st.lists(st.integers(0, 1), max_size=9)


class Sharing(RuleBasedStateMachine):
    """Texts come, grow and go over few blocks, with so few tokens that many have a beginning in common.

    ``contents`` is what a block really has: an owner writes it when it gets the block, and a shared block has to have
    what its new holder expects there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = PrefixBlocks(NUM_BLOCKS)
        self.texts: list[tuple[list[int], list[int]]] = []  # tokens, and blocks held
        self.contents: dict[int, tuple[int, ...]] = {}
        self.touched: dict[int, int] = {}  # block to the time at which it was last given back
        self.now = 0

    @rule(tokens=TOKENS)
    def come(self, tokens: list[int]) -> None:
        names = prefix_hashes(tokens, BLOCK_SIZE)
        held = self.blocks.take(names)
        for index, block in enumerate(held):
            assert self.contents[block] == tuple(tokens[: (index + 1) * BLOCK_SIZE]), "shared with another text"
        self.texts.append((list(tokens[: len(held) * BLOCK_SIZE]), held))
        self._grow(len(self.texts) - 1, tokens[len(held) * BLOCK_SIZE :])

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99), tokens=TOKENS)
    def grow(self, which: int, tokens: list[int]) -> None:
        self._grow(which % len(self.texts), tokens)

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99))
    def go(self, which: int) -> None:
        _, held = self.texts.pop(which % len(self.texts))
        self.now += 1
        for place, block in enumerate(reversed(held)):
            self.touched[block] = self.now * 100 + place
        self.blocks.release(held)
        assert held == []

    def _grow(self, which: int, more: list[int]) -> None:
        tokens, held = self.texts[which]
        missing = -(-(len(tokens) + len(more)) // BLOCK_SIZE) - len(held)
        free, before, idle = self.blocks.free_blocks, list(held), self._idle()
        enough = self.blocks.extend(held, max(missing, 0))
        assert enough == (missing <= free)
        assert held[: len(before)] == before, "a text's blocks stay where they are"
        if not enough:
            assert held == before
            return
        gone = idle - self._idle()
        kept = idle & self._idle()
        if gone and kept:
            assert max(map(self.touched.__getitem__, gone)) < min(map(self.touched.__getitem__, kept))
        tokens += more
        for index in range(len(before), len(held)):
            assert Counter(block for _, blocks in self.texts for block in blocks)[held[index]] == 1, "held already"
        for index, name in enumerate(prefix_hashes(tokens, BLOCK_SIZE)):
            if held[index] not in self._shared(which):
                self.contents[held[index]] = tuple(tokens[: (index + 1) * BLOCK_SIZE])
            self.blocks.name(held[index], name)

    def _shared(self, which: int) -> set[int]:
        return {block for other, (_, held) in enumerate(self.texts) if other != which for block in held}

    def _idle(self) -> set[int]:
        held = {block for _, blocks in self.texts for block in blocks}
        return set(self.blocks._names) - held

    @invariant()
    def every_block_is_held_as_often_as_it_is_in_a_table(self) -> None:
        held = Counter(block for _, blocks in self.texts for block in blocks)
        assert [held[block] for block in range(NUM_BLOCKS)] == list(map(self.blocks.holders, range(NUM_BLOCKS)))
        assert self.blocks.free_blocks == NUM_BLOCKS - len(held)
        assert self.blocks.idle_blocks == len(self._idle())


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)


def test_a_text_that_comes_again_finds_its_full_blocks_and_no_other_does() -> None:
    blocks, first = PrefixBlocks(8), list[int]()
    assert blocks.extend(first, 3)
    names = prefix_hashes([1, 2, 3, 4, 5], 2)
    for block, name in zip(first, names, strict=False):
        blocks.name(block, name)
    again = blocks.take(prefix_hashes([1, 2, 3, 4, 9, 9], 2))
    assert again == first[:2]
    assert blocks.take(prefix_hashes([2, 2, 3, 4], 2)) == []
    assert blocks.take(prefix_hashes([1, 2, 3, 4], 2, salt="another's")) == []
    blocks.release(first)
    assert (blocks.free_blocks, blocks.idle_blocks) == (6, 0), "what the other one holds is neither free nor idle"
    blocks.release(again)
    assert (blocks.free_blocks, blocks.idle_blocks) == (8, 2)


def test_the_end_of_the_text_that_was_left_first_goes_first() -> None:
    blocks, first, second, third = PrefixBlocks(4), list[int](), list[int](), list[int]()
    for held, tokens in ((first, [1, 1, 1, 1]), (second, [2, 2, 2, 2])):
        assert blocks.extend(held, 2)
        for block, name in zip(held, prefix_hashes(tokens, 2), strict=True):
            blocks.name(block, name)
    beginning = first[0]
    blocks.release(first)
    blocks.release(second)
    assert blocks.extend(third, 1)
    assert blocks.take(prefix_hashes([1, 1, 1, 1], 2)) == [beginning]
    assert len(blocks.take(prefix_hashes([2, 2, 2, 2], 2))) == 2


def test_without_names_nothing_is_kept() -> None:
    blocks, held = PrefixBlocks(4, keep=False), list[int]()
    assert blocks.extend(held, 2)
    for block, name in zip(held, prefix_hashes([1, 2, 3, 4], 2), strict=True):
        blocks.name(block, name)
    blocks.release(held)
    assert (blocks.free_blocks, blocks.idle_blocks) == (4, 0)
    assert blocks.take(prefix_hashes([1, 2, 3, 4], 2)) == []
