"""The fields of a request that say what its text has to be: whether they can be followed.

That is found out by compiling, here and before the request is queued: what blows up is refused by the compiler's limits
(``qspec.grammar``), in a thread of its own, and nobody else waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from qspec.constraint import MAX_CONSTRAINT_BYTES, Constraint
from qspec.errors import FieldViolation
from qspec.rpc.constraint_codec import requested_constraint
from qspec.v1 import generation_pb2 as pb


class ConstraintChecker(Protocol):
    """What validation needs of ``qspec.grammar.Grammars``."""

    def check(self, constraint: Constraint) -> str | None:
        """Why a text cannot be held to it, if so."""
        ...


def constraint_violations(message: pb.GenerateRequest, constraints: ConstraintChecker) -> Iterator[FieldViolation]:
    """Everything that is wrong with a request's constraint."""
    constraint = requested_constraint(message)
    if constraint is None:
        return
    if problem := size_problem(constraint.size) or constraints.check(constraint):
        yield FieldViolation(constraint.kind.value, problem)
    if message.ignore_eos:
        yield FieldViolation(
            "ignore_eos", f"contradicts {constraint.kind.value}: its text ends by an end-of-sequence token")


def size_problem(size: int) -> str | None:
    """What is wrong with the length of a constraint in bytes, if anything."""
    return f"at most {MAX_CONSTRAINT_BYTES} bytes, got {size}" if size > MAX_CONSTRAINT_BYTES else None
