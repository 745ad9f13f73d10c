"""The connections between one pair's workers and its engine: made, and taken down again.

What is decided by whom: ``coordinator.stack`` knows when a worker is ready or lost, this how it is attached and let go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from coordinator.agreement import Agreement
from coordinator.attached_drafter import AttachedDrafter
from coordinator.engine import Engine
from coordinator.pair import Pair
from qspec.errors import QspecError
from qspec.interfaces import VerifierDescription
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier

DETACH_TIMEOUT_S = 2.0
DRAFT_TIMEOUT_S = 10.0
"""Seconds within which a drafter must answer before it is taken for hung; rounds wait for it meanwhile."""
VERIFY_TIMEOUT_S = 60.0


class Connections:
    """Used by the stack's thread alone; what it finds out is written into ``pair``."""

    def __init__(self, pair: Pair, agreement: Agreement, make_engine: Callable[[VerifierDescription], Engine]) -> None:
        """``make_engine`` is called once, when the first verifier is there."""
        self._pair = pair
        self._agreement = agreement
        self._make_engine = make_engine
        self.verifier: RemoteVerifier | None = None
        self.drafter: AttachedDrafter | None = None

    @property
    def engine(self) -> Engine:
        """What the workers are attached to."""
        assert self._pair.engine is not None  # made before anything is attached
        return self._pair.engine

    def attach_verifier(self, address: str) -> VerifierDescription:
        """Have the engine work with the verifier at ``address``; returns what all verifiers here are like.

        Raises ``InvalidInput`` for one that is another than those, and what describing and attaching it raises.
        """
        remote = RemoteVerifier(address, answer_timeout_s=VERIFY_TIMEOUT_S)
        try:
            description = remote.describe()
            if self._pair.engine is None:
                self._pair.engine = self._make_engine(description)
            first = self._agreement.join(description)
            self._pair.verifier = self._pair.engine.attach_verifier(remote)
            self._pair.epochs += 1
        except BaseException:
            remote.close()
            raise
        self.verifier = remote
        return first

    def attach_drafter(self, address: str) -> AttachedDrafter:
        """Have the engine draft with the drafter at ``address``; raises what attaching it raises."""
        remote = RemoteDrafter(address, answer_timeout_s=DRAFT_TIMEOUT_S)
        try:
            # Mapping the arena and quantising takes a while: done here, so that rounds go on meanwhile.
            attached = AttachedDrafter(remote, remote.attach(self._description()))
            self._pair.drafter = self.engine.attach_drafter(attached)
        except BaseException:
            remote.close()
            raise
        self.drafter = attached
        return attached

    def close_verifier(self) -> None:
        """The verifier is lost: nothing runs here until another one is attached."""
        if self._pair.engine is not None:
            self._pair.engine.detach_verifier()
        if self.verifier is not None:
            self.verifier.close()
            self.verifier = None

    def close_drafter(self) -> None:
        """Close the connection; a round that still uses it is told that the drafter is lost."""
        self._pair.drafter = None
        if self.drafter is not None:
            self.drafter.close()
            self.drafter = None

    def free_arena(self, address: str) -> None:
        """Have the drafter at ``address`` let go of a lost verifier's arena; raises when it does not confirm that."""
        self.close_drafter()
        remote = RemoteDrafter(address, answer_timeout_s=DETACH_TIMEOUT_S)
        try:
            remote.detach(self._description().epoch)
        finally:
            remote.close()

    def close(self) -> None:
        """Close both."""
        for remote in (self.verifier, self.drafter):
            if remote is not None:
                with contextlib.suppress(QspecError):
                    remote.close()

    def _description(self) -> VerifierDescription:
        assert self._pair.verifier is not None  # set when a verifier is attached
        return self._pair.verifier
