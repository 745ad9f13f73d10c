"""``--json-schema``, ``--regex`` and ``--grammar``: files are read here; the server says whether it can follow them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from coordinator.client.prompts import check_text
from coordinator.constraint_fields import size_problem
from qspec.constraint import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind
from qspec.errors import FieldViolation, InvalidInput
from qspec.rpc.constraint_codec import ConstraintFields, constraint_to_pb


def read_constraint_files(args: argparse.Namespace) -> Iterator[FieldViolation]:
    """Put texts in the place of paths, once and for all: what is read may be a pipe. One that cannot be read is told
    and left out.
    """
    given = _given(args)
    for kind in given if len(given) == 1 else ():
        path = getattr(args, kind.value)
        if isinstance(path, Path):
            try:
                setattr(args, kind.value, _read(path, _option(kind)))
            except InvalidInput as error:
                setattr(args, kind.value, None)
                yield from error.violations


def constraint_field(args: argparse.Namespace) -> ConstraintFields:
    """The field of a request that the options ask for, if any, once their files are read; ``InvalidInput``."""
    given = _given(args)
    if not given:
        return {}
    option = _option(given[0])
    if len(given) > 1:
        raise InvalidInput.field(_option(given[1]), f"cannot be used with {option}: a text has one constraint")
    text = getattr(args, given[0].value)
    check_text(text, option)
    constraint = Constraint(given[0], text)
    if problem := size_problem(constraint.size):
        raise InvalidInput.field(option, problem)
    return constraint_to_pb(constraint)


def _given(args: argparse.Namespace) -> list[ConstraintKind]:
    return [kind for kind in ConstraintKind if getattr(args, kind.value) is not None]


def _option(kind: ConstraintKind) -> str:
    return f"--{kind.value.replace('_', '-')}"


def _read(path: Path, option: str) -> str:
    """A file's text, no more of it than can be used."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONSTRAINT_BYTES + 1)
        if len(content) > MAX_CONSTRAINT_BYTES:
            raise InvalidInput.field(option, f"at most {MAX_CONSTRAINT_BYTES} bytes, and {path} has more")
        return content.decode()
    except OSError as error:
        raise InvalidInput.field(option, f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput.field(option, f"{path} is not UTF-8") from error
