"""What is compared, and that a wrong text is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.comparison import Comparison, Kind, Measurement, Way, ways
from benchmarks.comparison_report import figures_of, table
from qspec.api.script_options import ModelChoice

ONE = ModelChoice("m", "m")


def measurement(way: Way, seconds: tuple[float, ...], rounds: int, accepted: int) -> Measurement:
    """Two texts of ten tokens."""
    return Measurement(
        way=way, load_s=1.0, seconds=seconds, tokens=(10,) * len(seconds), rounds=rounds,
        drafted=0 if way.draft_method is None else 20, accepted=accepted, texts=((1, 2), (3, 4)))


@pytest.fixture
def comparison() -> Comparison:
    """Plain decoding at 10 tokens/s, drafting at 20."""
    plain, drafted = ways(ONE, "w8a8", "none", every_method=False)
    return Comparison(
        [measurement(plain, (1.0, 1.0, 2.0), 30, 0), measurement(drafted, (0.5, 0.5, 0.1), 15, 15)], {"other": "why"})


def test_the_pair_alone_or_everything() -> None:
    names = [way.name for way in ways(ONE, "w8a8", "none", every_method=False)]
    assert names == ["autoregressive none", "QSPEC w8a8 -> none"]
    everything = ways(ONE, "w8a8", "none", every_method=True)
    assert [way.name for way in everything if way.kind is Kind.SPECULATIVE] == ["speculative none -> none"]
    assert everything[0].name == "autoregressive none", "the baseline comes first"
    assert len({way.name for way in everything}) == len(everything)
    assert [way.name for way in ways(ONE, "none", "none", every_method=False)] == [
        "autoregressive none", "speculative none -> none"]


def test_figures(comparison: Comparison) -> None:
    plain, drafted = comparison.measurements
    figures = figures_of(drafted, plain)
    assert figures["tokens_per_s"]["median"] == 20.0
    assert figures["speed_up"] == 2.0
    assert figures["acceptance"] == 0.75
    assert figures["tokens_per_round"] == 2.0
    assert figures_of(plain, plain)["acceptance"] is None


def test_the_table_names_what_is_not_there(comparison: Comparison) -> None:
    lines = table(comparison).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:4] == ["QSPEC", "w8a8", "->", "none"]
    assert lines[3] == "other: not here (why)"


def test_a_text_that_differs_is_found(comparison: Comparison) -> None:
    plain, drafted = comparison.measurements
    assert comparison.differing(plain) == []
    comparison.measurements[1] = replace(drafted, texts=((1, 2), (3, 5)))
    assert comparison.differing(plain) == ["QSPEC w8a8 -> none"]
