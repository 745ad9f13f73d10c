"""Asking both workers at once: the verifier awaits the drafts of a round where the drafter leaves them.

One after the other, a round's drafts travel to whoever runs the loop and from there to the verifier, and both wait
meanwhile. Workers that share an arena need not: see ``qspec.engine.draft_handover``. Nor need they wait for whoever
runs the loop between two rounds: ``qspec.engine.decision_handover``. Workers in the loop's own process are called one
after the other, which costs nothing there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

from qspec.errors import QspecError
from qspec.interfaces import DraftAnswer, DraftBatch, Drafter, Verifier, VerifyAnswer, VerifyBatch

_ResultCo = TypeVar("_ResultCo", covariant=True)


class Pending(Protocol[_ResultCo]):
    """A call on its way."""

    def result(self) -> _ResultCo:
        """Wait for the answer; raises what the call would have raised. Once, and in the order of the calls."""
        ...

    def cancel(self) -> object:
        """Nobody waits for the answer any more; other calls of the same worker may be lost with it."""
        ...


@runtime_checkable
class HandingDrafter(Drafter, Protocol):
    """A drafter that leaves its drafts in the arena, and can be asked without waiting."""

    def begin_draft(self, batch: DraftBatch) -> Pending[DraftAnswer]:
        """``draft``, to be waited for later."""
        ...


@runtime_checkable
class FollowingDrafter(Drafter, Protocol):
    """A drafter that can begin where the verifier's decisions leave off (``DraftItem.after_round``)."""

    def give_up_round(self, epoch: int, round_number: int) -> None:
        """Nobody wants the drafts of this round: it waits for no decisions before them. Harmless otherwise.

        May be called while ``draft`` runs in another thread.
        """
        ...


@runtime_checkable
class AwaitingEngine(Verifier, Protocol):
    """A verifier that can take drafts from the arena (``Verification.awaited_drafts``)."""

    def give_up_drafts(self, epoch: int, round_number: int) -> None:
        """There will be no drafts of this round: a batch that awaits them is decided on without. Harmless otherwise.

        May be called while ``verify`` runs in another thread.
        """
        ...


@runtime_checkable
class AwaitingVerifier(AwaitingEngine, Protocol):
    """One that can be asked without waiting, too."""

    def begin_verify(self, batch: VerifyBatch) -> Pending[VerifyAnswer]:
        """``verify``, to be waited for later."""
        ...


def begin_both(
    drafter: HandingDrafter, verifier: AwaitingVerifier, drafts: DraftBatch, batch: VerifyBatch
) -> tuple[Pending[DraftAnswer] | QspecError, Pending[VerifyAnswer]]:
    """Have ``drafts`` made and ``batch``, which awaits them, decided on.

    A drafter that cannot be asked is an error in the place of its answer; the verifier is asked to decide without then.
    Raises ``WorkerLost`` of the verifier.
    """
    try:
        drafting = drafter.begin_draft(drafts)
    except QspecError as error:
        return error, verifier.begin_verify(with_drafts(batch, {}))
    try:
        return drafting, verifier.begin_verify(batch)
    except BaseException:
        with contextlib.suppress(QspecError):  # or the next call would get the answer to this one
            drafting.result()
        raise


def with_drafts(batch: VerifyBatch, drafts: Mapping[int, tuple[int, ...]]) -> VerifyBatch:
    """The batch with the drafts that it awaits, by slot; of slots without an entry there are none."""
    return replace(batch, verifications=tuple(
        replace(verification, draft_tokens=drafts.get(verification.slot, ()), awaited_drafts=0)
        if verification.awaited_drafts else verification
        for verification in batch.verifications))
