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

from qspec.errors import ContractViolation
from qspec.interfaces import Release
from qspec.prefix_sharing import PrefixSharing, blocks_to_begin
from qspec.room import Room
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
        self.sharing = PrefixSharing(1, enabled=False)
        self._held: frozenset[bytes] = frozenset()
        self._held_key: tuple[tuple[int, int], ...] = ()  # what ``_held`` is of
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

    @property
    def unclaimed_blocks(self) -> int:
        """KV blocks that are free beyond what running sequences need for the tokens that they have; perhaps below 0.

        A prompt that is being entered has a claim to the blocks for the rest of it, though it has none of them yet.
        """
        size = self.sharing.block_size
        entering = [sequence for sequence in self.running if not sequence.admitted]
        held = self.sharing.names_held(one for one in self.running if one.admitted) if entering else set()
        claimed = 0
        for sequence in self.running:
            if sequence.admitted:  # one that is ready goes on with its tokens alone, others begin with one more
                needed = blocks_to_begin(len(sequence.tokens) - sequence.ready, (), size)
                claimed += max(needed - sequence.reserved_len // size, 0)
        for sequence in entering:
            claimed += self.sharing.first_blocks(sequence, held)
            held.update(self.sharing.names(sequence))
        return self.free_blocks - claimed

    def room(self, block_size: int) -> Room:
        """What a sequence that is queued now would find."""
        room = Room(
            free_slots=len(self._free_slots), free_blocks=self.unclaimed_blocks, block_size=block_size,
            idle=not (self.waiting or self.running or self.releases), held=self._names_held(),
            shares=self.sharing.enabled)
        for sequence in self.waiting:
            room = room.less(len(sequence.tokens), self.sharing.names(sequence) if sequence.reuses else ())
        return room

    def _names_held(self) -> frozenset[bytes]:
        """What running sequences' blocks are called; the same object as long as it is the same."""
        key = tuple((sequence.lease, len(self.sharing.names(sequence))) for sequence in self.running)
        if key != self._held_key:
            self._held_key, self._held = key, frozenset(self.sharing.names_held(self.running))
        return self._held

    def enqueue(self, sequence: Sequence) -> None:
        """Put a new sequence last in the queue."""
        sequence.arrival = next(self._arrivals)
        self.waiting.append(sequence)

    def admit(self) -> None:
        """Give free slots to waiting sequences, in order, as long as their tokens fit into free and shared blocks."""
        if not self.waiting or not self._free_slots:
            return
        free_blocks, held = self.unclaimed_blocks, self.sharing.names_held(self.running)
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
