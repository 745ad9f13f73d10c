"""Expected acceptance is what was measured: each figure stands in ``docs/methods.md``."""

from __future__ import annotations

import re

from qspec.quant.expected_acceptance import AGAINST_UNQUANTISED, BESIDE_ITS_OWN_WEIGHTS, expected_acceptance
from qspec.quant.methods import METHODS, Variant
from tools.check_imports import ROOT

DOCUMENT = (ROOT / "docs" / "methods.md").read_text("utf-8")
VARIANTS = {f"{method.name}:{each.name}": each for method in METHODS.values() for each in method.variants}


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading of the document."""
    section = DOCUMENT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "`" in line]


def variant(cell: str) -> Variant:
    """The variant that a cell such as ``w8a8`` (real) names."""
    found = re.match(r"`([^`]+)`", cell)
    assert found is not None
    name = found[1]
    return VARIANTS.get(name) or METHODS[name].variants[0]


def test_figures_against_an_unquantised_target_are_the_table_s() -> None:
    measured = {}
    for cells in rows("Every method against fp32"):
        if cells[0].startswith("`") and len(cells) == 10:
            each = variant(cells[0])
            measured[each.weights, each.activations] = float(cells[8])
    assert len(AGAINST_UNQUANTISED) >= 10
    for formats, figure in AGAINST_UNQUANTISED.items():
        assert measured[formats] == figure, formats


def test_figures_beside_the_same_weights_are_the_table_s() -> None:
    measured: dict[str, set[float]] = {}
    for cells in rows("Pairs"):
        if len(cells) == 9:
            draft, verify = variant(cells[0]), variant(cells[1])
            if draft.weights == verify.weights:
                measured.setdefault(draft.activations, set()).add(float(cells[7]))
    assert set(BESIDE_ITS_OWN_WEIGHTS) == set(measured)
    for activations, figure in BESIDE_ITS_OWN_WEIGHTS.items():
        assert figure in measured[activations]


def test_the_same_computation_always_stands_and_what_was_not_measured_is_not_guessed() -> None:
    assert expected_acceptance(VARIANTS["int8:row"], VARIANTS["int8:row"]) == 1.0
    assert expected_acceptance(VARIANTS["fp4:mxfp4"], VARIANTS["none:fp32"]) is None
    assert expected_acceptance(VARIANTS["w4a8:g64"], VARIANTS["int4:nf4"]) is None
    assert expected_acceptance(VARIANTS["fp8:plane"], VARIANTS["none:fp16"]) == 0.930
