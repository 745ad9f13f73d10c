"""A drafter that was attached before the loop gets it.

Attaching maps an arena and may quantise a whole model, during which the loop's thread would stand still. The stack
attaches beforehand, in its own thread, and hands the loop this, which answers the same question at once.
"""

from __future__ import annotations

from qspec.interfaces import DraftAnswer, DraftBatch, DrafterDescription, VerifierDescription
from qspec.overlap import HandingDrafter, Pending


class AttachedDrafter:
    """A ``Drafter`` whose ``attach`` to the epoch that it is attached to costs nothing."""

    def __init__(self, drafter: HandingDrafter, description: DrafterDescription) -> None:
        self._drafter = drafter
        self.description = description
        """What it said when it was attached."""

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        if verifier.epoch != self.description.epoch:
            self.description = self._drafter.attach(verifier)
        return self.description

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""
        self._drafter.detach(epoch)

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        return self._drafter.draft(batch)

    def begin_draft(self, batch: DraftBatch) -> Pending[DraftAnswer]:
        """See ``HandingDrafter``."""
        return self._drafter.begin_draft(batch)

    def close(self) -> None:
        """See ``Drafter``."""
        self._drafter.close()
