"""A checker of constraints for tests that compile none."""

from __future__ import annotations

from qspec.constraint import Constraint


class FakeConstraints:
    """Refuses the text ``bad``."""

    def check(self, constraint: Constraint) -> str | None:
        """See ``coordinator.constraint_fields.ConstraintChecker``."""
        return "is bad" if constraint.text == "bad" else None
