"""Who holds which KV block: pure bookkeeping, owned by the verifier."""

from __future__ import annotations


class BlockAllocator:
    """Hands out blocks ``0..num_blocks-1``; a sequence's blocks are kept adjacent where that is possible.

    Adjacent blocks are read in place (``qspec.kernels.paged_attention``), so a new sequence starts in the middle of
    the longest free run and grows into what lies behind it.
    """

    def __init__(self, num_blocks: int) -> None:
        self._free = set(range(num_blocks))

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def extend(self, held: list[int], count: int) -> bool:
        """Append ``count`` blocks to ``held``, all of them or none; False when there are not enough."""
        if count > len(self._free):
            return False
        for _ in range(count):
            block = held[-1] + 1 if held and held[-1] + 1 in self._free else self._roomiest_start(bool(held))
            self._free.remove(block)
            held.append(block)
        return True

    def release(self, held: list[int]) -> None:
        """Give all blocks of ``held`` back and empty it."""
        self._free.update(held)
        held.clear()

    def _roomiest_start(self, growing: bool) -> int:
        """A free block with room behind it: the start of the longest free run, or its middle when others grow there."""
        best_start, best_length = -1, 0
        start, previous = -1, -2
        for block in sorted(self._free):
            if block != previous + 1:
                start = block
            previous = block
            if block - start + 1 > best_length:
                best_start, best_length = start, block - start + 1
        grows_into_it = best_start > 0 and best_start - 1 not in self._free
        return best_start + best_length // 2 if grows_into_it and not growing else best_start
