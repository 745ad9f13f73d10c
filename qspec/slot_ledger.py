"""Who has a slot, who waits for one, and what has to be given back: the loop's bookkeeping, without any calls.

The verifier executes what this ledger decides: admissions and releases travel with the next batch. A sequence that
loses its slot (KV blocks ran out, or the verifier was lost) goes first in the queue and is computed again from its
committed tokens.
"""

from __future__ import annotations

import time
from collections import deque

from qspec.errors import ContractViolation
from qspec.interfaces import Release
from qspec.sequence import Sequence


class SlotLedger:
    """Sequences in slots (``running``, oldest first), in the queue (``waiting``), and slots on their way back."""

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.releases: list[Release] = []
        self.free_blocks = 0
        self.preemptions = 0
        """Sequences that had to give way because KV blocks ran out."""
        self._free_slots: list[int] = []
        self._lease = time.time_ns()  # above those of any loop that used the same verifier before

    def new_lease(self) -> int:
        """A number that no tenancy had before."""
        self._lease += 1
        return self._lease

    def start_over(self, slots: int, free_blocks: int) -> None:
        """A verifier with all slots free: everyone who had one queues again, in the order in which they came."""
        self.releases.clear()
        self._free_slots = list(range(slots))
        self.free_blocks = free_blocks
        for sequence in reversed(self.running):
            self._requeue(sequence)
        self.running.clear()

    def has_room(self, sequence: Sequence, block_size: int) -> bool:
        """Whether a sequence that is queued now would get a slot at once, behind those that wait already."""
        if len(self.waiting) >= len(self._free_slots):
            return False
        needed = sum(_first_blocks(one, block_size) for one in (*self.waiting, sequence))
        return needed <= self.free_blocks or not (self.waiting or self.running or self.releases)

    def admit(self, block_size: int) -> None:
        """Give free slots to waiting sequences, in order, as long as their tokens fit into free blocks."""
        free_blocks = self.free_blocks
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            needed = _first_blocks(sequence, block_size)
            if needed > free_blocks and (self.running or self.releases):
                return
            free_blocks -= needed
            self.waiting.popleft()
            sequence.slot, sequence.lease = self._free_slots.pop(), self.new_lease()
            sequence.admitted, sequence.cached_len = False, 0
            self.running.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence, wherever it is."""
        if sequence in self.running:
            self.vacate(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def vacate(self, sequence: Sequence) -> None:
        """Take a running sequence's slot back."""
        self.running.remove(sequence)
        self.releases.append(Release(slot=sequence.slot, lease=sequence.lease))

    def recompute(self, sequence: Sequence) -> None:
        """Take a running sequence's slot back and put it first in the queue."""
        self.vacate(sequence)
        self._requeue(sequence)

    def preempt(self) -> None:
        """KV blocks ran out: the newest sequence gives way until there is room again."""
        if len(self.running) < 2:
            raise ContractViolation("one sequence alone exceeds the KV cache")
        self.preemptions += 1
        self.recompute(self.running[-1])

    def confirm(self, releases: tuple[Release, ...], free_blocks: int) -> None:
        """The verifier has taken ``releases`` back and has ``free_blocks``."""
        self._free_slots.extend(release.slot for release in releases)
        del self.releases[: len(releases)]
        self.free_blocks = free_blocks

    def _requeue(self, sequence: Sequence) -> None:
        sequence.stats.recomputations += 1
        self.waiting.appendleft(sequence)


def _first_blocks(sequence: Sequence, block_size: int) -> int:
    """Blocks that a sequence needs to begin with: for its tokens and one more."""
    return -(-(len(sequence.tokens) + 1) // block_size)
