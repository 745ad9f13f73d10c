"""Who has a slot, who waits for one, and what has to be given back: the loop's bookkeeping, without any calls.

The verifier executes what this ledger decides: admissions and releases travel with the next batch. A sequence that
loses its slot (KV blocks ran out, or the verifier was lost) goes first in the queue and is computed again from its
committed tokens; the verifier may still have the entries of some.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections import deque
from dataclasses import dataclass, replace

from qspec.errors import ContractViolation
from qspec.interfaces import Release
from qspec.prefix_sharing import PrefixSharing
from qspec.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left for sequences that are queued now, behind those that wait already."""

    free_slots: int
    free_blocks: int
    block_size: int
    idle: bool
    """Nobody runs, waits or has anything to give back: whatever fits into the cache at all would run."""

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many committed tokens would run in the next round."""
        return self.free_slots > 0 and (self.idle or _first_blocks(tokens, self.block_size) <= self.free_blocks)

    def less(self, tokens: int) -> Room:
        """What is left behind a sequence of so many committed tokens."""
        return replace(
            self, free_slots=self.free_slots - 1, idle=False,
            free_blocks=self.free_blocks - _first_blocks(tokens, self.block_size))


class SlotLedger:
    """Sequences in slots (``running``, oldest first), in the queue (``waiting``), and slots on their way back."""

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.releases: list[Release] = []
        self.free_blocks = 0
        self.preemptions = 0
        """Sequences that had to give way because KV blocks ran out."""
        self.sharing = PrefixSharing(1, enabled=False)
        self._free_slots: list[int] = []
        self._arrivals = itertools.count()
        self._lease = time.time_ns()  # above those of any loop that used the same verifier before

    def new_lease(self) -> int:
        """A number that no tenancy had before."""
        self._lease += 1
        return self._lease

    def start_over(self, slots: int, free_blocks: int, sharing: PrefixSharing) -> None:
        """A verifier with all slots free: everyone who had one queues again, in the order in which they came."""
        self.sharing = sharing
        self.releases.clear()
        self._free_slots = list(range(slots))
        self.free_blocks = free_blocks
        for sequence in reversed(self.running):
            self._requeue(sequence)
        self.running.clear()

    def room(self, block_size: int) -> Room:
        """What a sequence that is queued now would find."""
        room = Room(
            free_slots=len(self._free_slots), free_blocks=self.free_blocks, block_size=block_size,
            idle=not (self.waiting or self.running or self.releases))
        for sequence in self.waiting:
            room = room.less(len(sequence.tokens))
        return room

    def enqueue(self, sequence: Sequence) -> None:
        """Put a new sequence last in the queue."""
        sequence.arrival = next(self._arrivals)
        self.waiting.append(sequence)

    def admit(self) -> None:
        """Give free slots to waiting sequences, in order, as long as their tokens fit into free and shared blocks."""
        if not self.waiting or not self._free_slots:
            return
        free_blocks, held = self.free_blocks, self.sharing.names_held(self.running)
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            needed = self.sharing.first_blocks(sequence, held)
            if needed > free_blocks and (self.running or self.releases):
                return
            free_blocks -= needed
            held.update(self.sharing.names(sequence))
            self.waiting.popleft()
            sequence.slot, sequence.lease = self._free_slots.pop(), self.new_lease()
            sequence.admitted, sequence.cached_len, sequence.reserved_len = False, 0, 0
            bisect.insort(self.running, sequence, key=lambda one: one.arrival)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence, wherever it is."""
        if sequence in self.running:
            self.vacate(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def evict_all(self) -> list[Sequence]:
        """Take back every slot and empty the queue; returns who was there, in the order in which they came."""
        evicted = [*self.running, *self.waiting]
        for sequence in list(self.running):
            self.vacate(sequence)
            sequence.stats.recomputations += 1
        self.waiting.clear()
        return evicted

    def vacate(self, sequence: Sequence) -> None:
        """Take a running sequence's slot back."""
        self.running.remove(sequence)
        self.releases.append(Release(slot=sequence.slot, lease=sequence.lease))

    def recompute(self, sequence: Sequence) -> None:
        """Take a running sequence's slot back and put it first in the queue."""
        self.vacate(sequence)
        self._requeue(sequence)

    def preempt(self) -> None:
        """KV blocks ran out: one sequence gives way, until there is room again; not while others are given back anyway.

        The client of the newest one gives way, with the newest of its lowest priority: a priority orders a client's own
        sequences and takes nothing from others.
        """
        if self.releases:
            return
        if len(self.running) < 2:
            raise ContractViolation("one sequence alone exceeds the KV cache")
        self.preemptions += 1
        own = [sequence for sequence in self.running if sequence.client == self.running[-1].client]
        self.recompute(max(own, key=lambda sequence: (-sequence.priority, sequence.arrival)))

    def confirm(self, releases: tuple[Release, ...], free_blocks: int) -> None:
        """The verifier has taken ``releases`` back and has ``free_blocks``."""
        self._free_slots.extend(release.slot for release in releases)
        del self.releases[: len(releases)]
        self.free_blocks = free_blocks

    def _requeue(self, sequence: Sequence) -> None:
        sequence.stats.recomputations += 1
        self.waiting.appendleft(sequence)


def _first_blocks(tokens: int, block_size: int) -> int:
    """Blocks that a sequence needs to begin with: for its tokens and one more."""
    return -(-(tokens + 1) // block_size)
