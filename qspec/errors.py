"""Errors that QSPEC raises on purpose.

Every one of them reads as a single line that names what is wrong and what helps. The command-line programs print that
line and exit; the servers map the classes to gRPC statuses (``qspec.rpc.errors``). Anything else is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass


class QspecError(Exception):
    """Base of all deliberate errors; ``str()`` is one line for people."""

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The offending fields, where there are any."""
        return ()


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One offending field of a request or a configuration."""

    field: str
    description: str


class InvalidInput(QspecError):
    """Something the user gave cannot be used; names each field and the remedy."""

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """See ``QspecError``."""
        return self.violations

    @classmethod
    def field(cls, field: str, description: str) -> InvalidInput:
        """The common case of one field."""
        return cls(FieldViolation(field, description))


class ModelError(InvalidInput):
    """A model that cannot be found, read or understood."""

    def __init__(self, description: str) -> None:
        super().__init__(FieldViolation("model", description))


class EpochMismatch(QspecError):
    """A message speaks of another epoch than the worker's."""


class ContractViolation(QspecError):
    """A peer sent something that the protocol forbids."""


class WorkerLost(QspecError):
    """A worker process died, hung, or cannot be reached."""


class TlsFailed(WorkerLost):
    """TLS with a server could not be set up: wrong authority, name or time, or plain text at one end."""


class QueueFull(QspecError):
    """No room for another request; ``retry_after_s`` is a guess at when there will be."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class Unavailable(QspecError):
    """The server takes no requests, or does not go on with them; ``retry_after_s`` says when to ask again."""

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class DeadlineExceeded(QspecError):
    """A request was not finished by its deadline."""


class SlowReader(QspecError):
    """A client took its text more slowly than it was made, by more than is kept for it."""


class Unauthenticated(QspecError):
    """A call without a key that the server knows."""


class Unsupported(QspecError):
    """A call that the server does not know: it is older than its client, or another program."""


class OutOfMemory(QspecError):
    """An allocation that was refused before it was made; carries the memory budget as text."""
