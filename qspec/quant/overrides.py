"""Overrides of the method for single linear layers, as written: ``GLOB=METHOD[:VARIANT],…`` (no torch here).

A glob is matched, as the shell matches file names, against the canonical names of the linear layers
(``qspec.models.decoder.linear_names``): ``layers.3.qkv``, ``layers.*.mlp_out``, ``lm_head``. Where several match a
layer the last one wins, so that an exception is written behind its rule. What a whole model's layers come to is
``qspec.quant.method_plan``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from qspec.errors import FieldViolation, InvalidInput
from qspec.quant.methods import Backend, Role, choose_variant

OVERRIDE_FIELDS = {Role.DRAFT: "draft_overrides", Role.VERIFY: "verify_overrides"}
"""The configuration's field of each role."""


@dataclass(frozen=True, slots=True)
class Override:
    """One glob and the method of the layers that it matches."""

    glob: str
    method: str
    """``METHOD`` or ``METHOD:VARIANT``."""

    def matches(self, layer: str) -> bool:
        """Whether the linear layer of this canonical name is meant."""
        return fnmatchcase(layer, self.glob)

    def __str__(self) -> str:
        return f"{self.glob}={self.method}"


def parse_overrides(text: str, role: Role, backend: Backend = Backend.CPU) -> tuple[Override, ...]:
    """The overrides of one worker in the order of writing; none for a blank ``text``.

    ``InvalidInput`` with the field's name for every entry that is not ``GLOB=METHOD`` or whose method is unknown or
    absent on ``backend``.
    """
    overrides: list[Override] = []
    violations: list[FieldViolation] = []
    for entry in text.split(",") if text.strip() else []:
        glob, equals, method = (part.strip() for part in entry.partition("="))
        if not (glob and equals and method):
            problem = f"{entry.strip()!r} is not GLOB=METHOD; write for example lm_head=none,layers.0.*=w8a8"
            violations.append(FieldViolation(OVERRIDE_FIELDS[role], problem))
            continue
        try:
            choose_variant(method, role, backend, field=OVERRIDE_FIELDS[role])
        except InvalidInput as error:
            violations += error.violations
        overrides.append(Override(glob, method))
    if violations:
        raise InvalidInput(*violations)
    return tuple(overrides)
