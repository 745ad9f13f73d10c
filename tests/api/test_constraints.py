"""Texts of the Python API that are held to a constraint: valid, and the same whatever drafts."""

from __future__ import annotations

import re

import pytest
import torch

from qspec import (
    Constraint,
    ConstraintKind,
    QSPECModel,
    autoregressive_sampling,
    qspec_sampling,
    speculative_sampling,
)
from qspec.errors import InvalidInput
from tests.api.conftest import Loader

PREFIX = torch.tensor([[5, 9, 5], [250, 4, 8]])
CONSTRAINTS = {
    "[a-f]{2,9}(-[0-9]{3}){1,2}": Constraint(ConstraintKind.REGEX, "[a-f]{2,9}(-[0-9]{3}){1,2}"),
    r"[1-9]\+[1-9]": Constraint(ConstraintKind.GRAMMAR, 'start: DIGIT "+" DIGIT\nDIGIT: /[1-9]/\n'),
    r'\{"a":(true|false)\}': Constraint(ConstraintKind.JSON_SCHEMA, (
        '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], '
        '"additionalProperties": false, "x-guidance": {"whitespace_flexible": false}}')),
}


def texts(pair: QSPECModel, output: torch.Tensor) -> list[str]:
    """What is behind the prompts, without the end of sequence."""
    rows = output[:, PREFIX.shape[1] :].tolist()
    return [pair.verify.tokenizer.decode([t for t in row if t not in pair.verify.eos_token_ids]) for row in rows]


@pytest.mark.parametrize("pattern", CONSTRAINTS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_texts_satisfy_their_constraint_and_do_not_depend_on_drafts(
    pair: QSPECModel, load: Loader, pattern: str, temperature: float
) -> None:
    constraint = CONSTRAINTS[pattern]
    alone = autoregressive_sampling(
        PREFIX, pair.verify, 60, temperature=temperature, random_seed=3, constraint=constraint)
    made = texts(pair, alone)
    assert all(re.fullmatch(pattern, text) for text in made), made
    for gamma in (2, 5):
        drafted = qspec_sampling(
            PREFIX, pair, max_len=60, gamma=gamma, temperature=temperature, random_seed=3, constraint=constraint)
        assert torch.equal(drafted, alone)
    with_another_model = speculative_sampling(
        PREFIX, load("smollm2"), pair.verify, 60, temperature=temperature, random_seed=3, constraint=constraint)
    assert torch.equal(with_another_model, alone)


@pytest.mark.parametrize(
    ("constraint", "problem"),
    [
        (Constraint(ConstraintKind.REGEX, "(a"), "constraint: regex "),
        (Constraint(ConstraintKind.JSON_SCHEMA, "{"), "constraint: json_schema is no JSON"),
        (Constraint(ConstraintKind.REGEX, "a" * 65_537), "constraint: at most 65536 bytes, got 65537"),
    ],
)
def test_a_constraint_that_cannot_be_followed_is_refused(
    pair: QSPECModel, constraint: Constraint, problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem):
        qspec_sampling(PREFIX, pair, max_len=4, constraint=constraint)
    assert qspec_sampling(PREFIX, pair, max_len=4).shape == (2, 7)
