"""What a text has to be, as a request says it: a JSON schema, a regular expression or a grammar. No torch, no library.

The constraint travels to the verifier as text and is compiled there; the coordinator compiles it at admission, to
refuse what cannot be followed (``qspec.grammar``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_CONSTRAINT_BYTES = 65_536
"""Longest text of a constraint, in UTF-8."""


class ConstraintKind(Enum):
    """The language that a constraint is written in; the value is the request's field."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The whole text has to match."""

    kind: ConstraintKind
    text: str

    @property
    def size(self) -> int:
        """Bytes in UTF-8."""
        return len(self.text.encode())
