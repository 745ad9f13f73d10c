"""What a pair of workers is likely to have cached: the coordinator's own books of what it sent there, never a question.

A verifier keeps KV blocks of texts that have ended as long as nothing needs their place, the least recently used go
first. This imitates it with names of blocks (``qspec.prefix_hash``): those of texts that went to the pair, at most as
many as it has blocks, the least recently used forgotten first. It may err in both directions; a request that is placed
by an error is prefilled as any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PlacedPrefixes:
    """Names of blocks that went to one pair. Not to be used by two threads at once."""

    def __init__(self, most_blocks: int) -> None:
        """``most_blocks``: as many as the pair has; 0 remembers nothing."""
        self._most_blocks = most_blocks
        self._names: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def cached_blocks(self, names: Sequence[bytes]) -> int:
        """How many of a text's leading blocks are likely to be there."""
        for count, name in enumerate(names):
            if name not in self._names:
                return count
        return len(names)

    def note(self, names: Sequence[bytes]) -> None:
        """A text with these blocks went there. Its first blocks are forgotten last: the others are void without."""
        for name in reversed(names):
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > self._most_blocks:
            self._names.popitem(last=False)

    def clear(self) -> None:
        """Its cache is gone, with the verifier that had it."""
        self._names.clear()
