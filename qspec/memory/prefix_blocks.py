"""KV blocks that several sequences may hold: named by their content, counted, and kept until somebody needs the room.

A block gets a name (``qspec.prefix_hash``) once all its positions are committed, and is never written again; a sequence
writes behind what it holds, never into it. That is why nothing is ever copied on a write: only full blocks are shared,
and the few tokens of a partial one are computed again.

A named block that nobody holds any more stays where it is, *idle*: it can be taken by its name, and it is free all the
same. When no other block is left the idle one that was held longest ago goes first; of blocks given back together, the
last of the text, because a block without those before it cannot be found.

Pure bookkeeping, owned by the verifier. A new owner, as after the loss of a verifier, begins with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from qspec.memory.kv_blocks import BlockAllocator


class PrefixBlocks:
    """Blocks ``0..num_blocks-1``. Where blocks lie side by side is ``BlockAllocator``'s concern."""

    def __init__(self, num_blocks: int, *, keep: bool = True) -> None:
        """``keep``: whether blocks get names at all; otherwise nothing is ever shared."""
        self._allocator = BlockAllocator(num_blocks)
        self._holders = [0] * num_blocks
        self._keep = keep
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # in the order in which they were given back

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds, idle ones included."""
        return self._allocator.free_blocks + len(self._idle)

    @property
    def idle_blocks(self) -> int:
        """Blocks that nobody holds and that can still be taken by their names."""
        return len(self._idle)

    def holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._holders[block]

    def take(self, names: Sequence[bytes]) -> list[int]:
        """Hold the blocks of the longest beginning of ``names`` that is there."""
        taken: list[int] = []
        for name in names:
            block = self._named.get(name)
            if block is None:
                break
            self._idle.pop(block, None)
            self._holders[block] += 1
            taken.append(block)
        return taken

    def extend(self, held: list[int], count: int) -> bool:
        """Append ``count`` blocks to ``held``, all of them or none; False when there are not enough."""
        if count > self.free_blocks:
            return False
        while self._allocator.free_blocks < count:
            self._forget(next(iter(self._idle)))
        before = len(held)
        self._allocator.extend(held, count)
        for block in held[before:]:
            self._holders[block] = 1
        return True

    def name(self, block: int, name: bytes) -> None:
        """Call a held block by its content, from now on never written; where another one has the name, that keeps it.
        """
        if self._keep and name not in self._named and block not in self._names:
            self._named[name], self._names[block] = block, name

    def release(self, held: list[int]) -> None:
        """Hold the blocks of ``held`` no longer, and empty it."""
        for block in reversed(held):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._names:
                self._idle[block] = None
            else:
                self._allocator.release([block])
        held.clear()

    def _forget(self, block: int) -> None:
        """Turn an idle block into a free one without a name."""
        del self._idle[block]
        del self._named[self._names.pop(block)]
        self._allocator.release([block])
