"""What a sequence may expect to find of its beginning at the verifier: the loop's guess, by the texts in slots.

The verifier alone knows whose KV entries it has (``qspec.memory.prefix_blocks``), and it looks when a sequence is
admitted. The loop has to decide before that, and knows what running sequences have entered or are about to: enough to
let sequences in that fit because they share blocks, and to admit a sequence a little later when another one is just
entering its beginning, as with several texts of one prompt. A guess that is wrong costs a round or a preemption; no
text depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as ReadOnlySequence
from dataclasses import dataclass

from qspec.sequence import Sequence


def blocks_to_begin(tokens: int, names: ReadOnlySequence[bytes], block_size: int, *held: Collection[bytes]) -> int:
    """Blocks that a sequence of so many tokens needs for these and one more, beside the first of its ``names`` that are
    in any of ``held``."""
    shared = next(
        (index for index, name in enumerate(names) if not any(name in one for one in held)), len(names))
    return -(-(tokens + 1) // block_size) - shared


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """Guesses about a verifier with blocks of ``block_size`` positions that shares them, or does not."""

    block_size: int
    enabled: bool

    def names(self, sequence: Sequence) -> list[bytes]:
        """What the full blocks are called that a sequence holds once its committed tokens are entered."""
        return sequence.block_names(self.block_size) if self.enabled else []

    def names_held(self, running: Iterable[Sequence]) -> set[bytes]:
        """What the blocks are called that running sequences hold, or will hold."""
        return {name for sequence in running for name in self.names(sequence)}

    def first_blocks(self, sequence: Sequence, held: set[bytes]) -> int:
        """Blocks that a sequence needs to begin with, for its tokens and one more, beside those ``held`` by others."""
        names = self.names(sequence) if sequence.reuses else ()
        return blocks_to_begin(len(sequence.tokens), names, self.block_size, held)

    def held_back(self, running: Iterable[Sequence]) -> set[int]:
        """Slots of sequences to be admitted later: one before them in ``running`` is entering what they begin with."""
        running = list(running)
        if not self.enabled or all(sequence.admitted for sequence in running):
            return set()
        entered = {name for one in running for name in self.names(one)[: one.cached_len // self.block_size]}
        entering: set[bytes] = set()
        held_back = set()
        for sequence in running:
            names = self.names(sequence)
            if not sequence.admitted and sequence.reuses and not entering.isdisjoint(names):
                held_back.add(sequence.slot)
            else:
                entering.update(name for name in names if name not in entered)
        return held_back
