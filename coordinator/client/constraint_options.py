"""``--json-schema``, ``--regex`` and ``--grammar``: files are read here; the server says whether it can follow them."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordinator.client.prompts import check_text
from coordinator.constraint_fields import size_problem
from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import InvalidInput
from qspec.rpc.constraint_codec import ConstraintFields, constraint_to_pb


def constraint_field(args: argparse.Namespace) -> ConstraintFields:
    """The field of a request that the options ask for, if any; ``InvalidInput``."""
    given = [kind for kind in ConstraintKind if getattr(args, kind.value) is not None]
    if not given:
        return {}
    options = [f"--{kind.value.replace('_', '-')}" for kind in given]
    if len(given) > 1:
        raise InvalidInput.field(options[1], f"cannot be used with {options[0]}: a text has one constraint")
    value = getattr(args, given[0].value)
    text = _read(value, options[0]) if isinstance(value, Path) else value
    check_text(text, options[0])
    constraint = Constraint(given[0], text)
    if problem := size_problem(constraint.size):
        raise InvalidInput.field(options[0], problem)
    return constraint_to_pb(constraint)


def _read(path: Path, option: str) -> str:
    """A file's text, unless it is too long."""
    try:
        size = path.stat().st_size
        if problem := size_problem(size):
            raise InvalidInput.field(option, problem)
        return path.read_text("utf-8")
    except OSError as error:
        raise InvalidInput.field(option, f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput.field(option, f"{path} is not UTF-8") from error
