"""What is left for sequences that come now: slots, and KV blocks beside those that they would share with others.

A value that crosses threads: the loop says it between two rounds, and whoever places sequences reckons with it until
the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qspec.prefix_sharing import blocks_to_begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left for sequences that are queued now, behind those that wait already.

    Where sequences are asked about by ``tokens`` and ``names``, these are their committed tokens, at least 1, and what
    the first of their full blocks are called (``qspec.prefix_hash``), if they share any.
    """

    free_slots: int
    free_blocks: int
    block_size: int
    idle: bool
    """Nobody runs, waits or has anything to give back: whatever fits into the cache at all would run."""
    held: frozenset[bytes] = frozenset()
    """What the blocks are called that running sequences hold or will hold. The same object as long as nothing changes,
    so that it is cheap to compare."""
    coming: frozenset[bytes] = frozenset()
    """The same of those that wait."""
    shares: bool = False
    """Whether blocks are shared at all."""

    def fits(self, tokens: int, names: Sequence[bytes] = ()) -> bool:
        """Whether a sequence would run in the next round."""
        return self.free_slots > 0 and (self.idle or self._first_blocks(tokens, names) <= self.free_blocks)

    def less(self, tokens: int, names: Sequence[bytes] = ()) -> Room:
        """What is left behind one more sequence."""
        return replace(
            self, free_slots=self.free_slots - 1, idle=False,
            free_blocks=self.free_blocks - self._first_blocks(tokens, names),
            coming=self.coming.union(names) if self.shares and names else self.coming)

    def _first_blocks(self, tokens: int, names: Sequence[bytes]) -> int:
        return blocks_to_begin(tokens, names if self.shares else (), self.block_size, self.held, self.coming)
