"""A constraint as the one of several fields that is set; see ``qspec.rpc.codec``."""

from __future__ import annotations

from typing import TypedDict

from qspec.constraint import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind
from qspec.rpc.codec import require
from qspec.v1 import generation_pb2, verifier_pb2


class ConstraintFields(TypedDict, total=False):
    """At most one is there."""

    json_schema: str
    regex: str
    grammar: str


def constraint_to_pb(constraint: Constraint | None) -> ConstraintFields:
    """The field to set."""
    match constraint:
        case None:
            return {}
        case Constraint(ConstraintKind.JSON_SCHEMA, text):
            return {"json_schema": text}
        case Constraint(ConstraintKind.REGEX, text):
            return {"regex": text}
        case Constraint(_, text):
            return {"grammar": text}


def constraint_from_pb(message: verifier_pb2.Admission) -> Constraint | None:
    """Decode; its size is bounded."""
    constraint = requested_constraint(message)
    require(constraint is None or constraint.size <= MAX_CONSTRAINT_BYTES, "the constraint is too long")
    return constraint


def requested_constraint(message: verifier_pb2.Admission | generation_pb2.GenerateRequest) -> Constraint | None:
    """The one that is set, whatever its size."""
    field = message.WhichOneof("constraint")
    return None if field is None else Constraint(ConstraintKind(field), getattr(message, field))
