"""Results that survive: of a failing cell, of time that is up, of a process that a cell took along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import results_file, section_run
from benchmarks.gpu.bench_run import BenchRun, Program
from benchmarks.gpu.results_file import GpuLost, ResultsFile, Section
from benchmarks.gpu.section_run import WHOLE, Attempt, Limits, run_sections


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def go(tmp_path: Path, clock: Time, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bool, dict[str, Any]]]:
    """Runs programs and returns whether it went through, and what the file has."""
    monkeypatch.setattr(section_run, "describe_gpu_environment", lambda: {"commit": "c0ffee"})

    def going(
        programs: dict[str, Program], attempt: Attempt | None = None, until: float = 100.0, section_s: float = 50.0,
        **settings: Any,
    ) -> tuple[bool, dict[str, Any]]:
        results = ResultsFile(tmp_path / "results.json")
        done = run_sections(
            list(programs), programs, results, BenchRun(output=tmp_path, results=results, **settings),
            Limits(until=until, section_s=section_s), attempt or Attempt(), clock=clock)
        return done, json.loads((tmp_path / "results.json").read_text("utf-8"))["sections"]

    return going


def measuring(*cells: tuple[str, Callable[[], Any]]) -> Program:
    def program(section: Section, run: BenchRun) -> None:
        for name, measure in cells:
            section.measure(name, measure)

    return program


def failing() -> Any:
    raise ValueError("no such luck")


Going = Callable[..., tuple[bool, dict[str, Any]]]


def test_a_failure_costs_its_cell_alone_and_is_tried_again(go: Going) -> None:
    done, found = go({"a": measuring(("1", lambda: 1), ("2", failing), ("3", lambda: 3)), "b": measuring(
        ("1", lambda: 1))})
    assert done
    assert found["a"]["cells"] == {"1": 1, "3": 3} and found["a"]["failed"] == {"2": "ValueError: no such luck"}
    assert (found["a"]["complete"], found["b"]["complete"]) == (False, True)
    assert found["a"]["environments"] == [{"commit": "c0ffee"}]
    _, found = go({"a": measuring(("1", failing), ("2", lambda: 2), ("3", failing)), "b": measuring(("1", failing))})
    assert found["a"]["cells"] == {"1": 1, "2": 2, "3": 3} and found["a"]["complete"] and not found["a"]["failed"]
    _, found = go({"a": measuring(("1", lambda: 10))}, Attempt(again=True))
    assert found["a"]["cells"] == {"1": 10} and found["b"]["cells"] == {"1": 1}


def test_a_section_that_fails_as_a_whole_costs_no_other(go: Going) -> None:
    def program(section: Section, run: BenchRun) -> None:
        raise KeyError("nothing")

    done, found = go({"a": program, "b": measuring(("1", lambda: 1))})
    assert done and WHOLE in found["a"]["failed"] and found["b"]["complete"]


def test_time_that_is_up_leaves_cells_for_the_next_run(go: Going, clock: Time) -> None:
    def taking(seconds: float) -> Callable[[], float]:
        def measure() -> float:
            clock.now += seconds
            return seconds

        return measure

    programs = {"a": measuring(("1", taking(30.0)), ("2", taking(30.0)), ("3", taking(1.0))),
                "b": measuring(("1", taking(30.0))), "c": measuring(("1", taking(1.0)))}
    _, found = go(programs, until=80.0)
    assert [found[name]["left"] for name in "abc"] == [["3"], [], ["1"]], "a had 50 s of its own, all had 80"
    assert [found[name]["complete"] for name in "abc"] == [False, True, False]
    _, found = go(programs, until=200.0)
    assert all(found[name]["complete"] and not found[name]["left"] for name in "abc")
    assert found["a"]["cells"] == {"1": 30.0, "2": 30.0, "3": 1.0}


def test_a_fault_of_the_gpu_ends_a_process_and_the_next_one_goes_on(
    go: Going, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_file, "gpu_is_lost", lambda: True)
    programs = {"a": measuring(("1", lambda: 1), ("2", failing), ("3", lambda: 3)), "b": measuring(("1", lambda: 1))}
    done, found = go(programs)
    assert not done and found["a"]["cells"] == {"1": 1} and "b" not in found
    done, found = go(programs, Attempt(number=1))
    assert done and found["a"]["cells"] == {"1": 1, "3": 3} and list(found["a"]["failed"]) == ["2"]
    assert found["b"]["complete"]


def test_a_cell_that_took_its_process_along_counts_as_failed(tmp_path: Path, go: Going) -> None:
    def ending() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go({"a": measuring(("1", lambda: 1), ("2", ending))})
    written = json.loads((tmp_path / "results.json").read_text("utf-8"))
    written["sections"]["a"]["begun"] = "2"  # as where no ``finally`` ran
    (tmp_path / "results.json").write_text(json.dumps(written), "utf-8")
    _, found = go({"a": measuring(("1", failing), ("2", failing), ("3", lambda: 3))}, Attempt(number=1))
    assert found["a"]["cells"] == {"1": 1, "3": 3} and found["a"]["failed"] == {"2": "the process ended in it"}


def test_a_lost_gpu_passes_through_what_catches_failures(tmp_path: Path) -> None:
    section = ResultsFile(tmp_path / "r.json").section("a", {}, deadline=1e9, tell=lambda line: None)
    with pytest.raises(GpuLost):
        section.fail("x", GpuLost("y"))
    assert not section.record["failed"]


def test_another_pair_has_records_of_its_own(go: Going) -> None:
    go({"x7": measuring(("1", lambda: 1))})
    _, found = go({"x7": measuring(("1", lambda: 2))}, draft="w8a8", verify="int8")
    assert {name: record["cells"]["1"] for name, record in found.items()} == {"x7": 1, "x7 w8a8 → int8": 2}
