"""Hashes of prefixes: equal for equal beginnings, and for nothing else."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.prefix_hash import HASH_BYTES, block_hash, extend_hashes, prefix_hashes, root_hash

TOKENS = st.lists(st.sampled_from([0, 1, 256, 2**32 - 1]), max_size=12)
BLOCK_SIZES = st.integers(1, 5)
GOLDEN = "166244a7ec15295894814a336fa8cf3a20c6f87ca833a785c68b640367ac61ef"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TOKENS, TOKENS, BLOCK_SIZES, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]))
def test_two_texts_share_exactly_the_hashes_of_their_common_full_blocks(
    one: list[int], other: list[int], size: int, salt: str, other_salt: str
) -> None:
    hashes, others = prefix_hashes(one, size, salt), prefix_hashes(other, size, other_salt)
    assert len(hashes) == len(one) // size
    assert all(len(found) == HASH_BYTES for found in hashes)
    for index in range(min(len(hashes), len(others))):
        end = (index + 1) * size
        assert (hashes[index] == others[index]) == (salt == other_salt and one[:end] == other[:end])
    assert len({root_hash(salt), *hashes}) == len(hashes) + 1, "no two prefixes of one text are called alike"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TOKENS, st.integers(0, 12), BLOCK_SIZES)
def test_hashes_of_a_growing_text_are_those_of_the_whole(tokens: list[int], first: int, size: int) -> None:
    hashes = prefix_hashes(tokens[:first], size, "s")
    extend_hashes(hashes, tokens, size, "s")
    assert hashes == prefix_hashes(tokens, size, "s")


def test_the_names_are_the_same_in_every_run() -> None:
    assert block_hash(root_hash(), [1, 2]).hex() == GOLDEN
    assert prefix_hashes([1, 2, 3], 2) == [bytes.fromhex(GOLDEN)]


def test_the_coordinator_can_hash_without_torch() -> None:
    code = "import qspec.prefix_hash, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
