"""How far drafts may go in KV blocks: nobody gives way for the sake of drafts.

A draft needs a position, and now and then a position needs a new block. What sequences hold already is theirs; of the
blocks that are free beyond what the round needs without any drafts, one goes to each in turn, from the oldest on. A
draft that took more could leave another sequence, or its own, without the block that it cannot do without, and then
somebody has to give way and be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """One sequence that may draft."""

    committed_len: int
    reserved_len: int
    """Positions that it has blocks for."""
    cap: int
    """Most drafts, for other reasons."""


def caps_within_blocks(holdings: Sequence[Holding], spare_blocks: int, block_size: int) -> list[int]:
    """Most drafts of each sequence, oldest first.

    ``spare_blocks``: left when every sequence has the block for its pending token, and everything else in the round
    what it needs; below 1 there are none for drafts.
    """
    own = [max(holding.reserved_len // block_size, _blocks(holding.committed_len, block_size)) for holding in holdings]
    missing = [max(_blocks(holding.committed_len + holding.cap, block_size) - blocks, 0)
               for holding, blocks in zip(holdings, own, strict=True)]
    spare = spare_blocks
    while spare > 0 and any(missing):
        for index in range(len(holdings)):
            if missing[index] and spare > 0:
                own[index], missing[index], spare = own[index] + 1, missing[index] - 1, spare - 1
    return [min(holding.cap, blocks * block_size - holding.committed_len)
            for holding, blocks in zip(holdings, own, strict=True)]


def _blocks(positions: int, block_size: int) -> int:
    return -(-positions // block_size)
