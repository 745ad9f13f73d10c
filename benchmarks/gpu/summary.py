"""The times as short tables: for people, and for terminals that keep the last lines only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SHOWN = ("both", "both, finished", "high, 16-bit", "fp8", "merge, cuBLAS", "merged alone")
_BASE = "cuBLAS fp16"


def linear_summary(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each shape: the library's µs, and each kernel's time relative to it, by number of rows."""
    shapes = dict.fromkeys((each["outputs"], each["inputs"]) for each in figures)
    for shape in shapes:
        of_shape = [each for each in figures if (each["outputs"], each["inputs"]) == shape]
        names = list(dict.fromkeys(name for each in of_shape for name in each["us"]))
        heading = "".join(f"{each['rows']:>8}" for each in of_shape)
        both, high = (of_shape[0][f"{planes}_floor_us"] for planes in ("both", "high"))
        yield f"{shape[0]}x{shape[1]}, floors {both:.1f} and {high:.1f} µs"
        yield f"  {'rows':<22}{heading}"
        yield f"  {_BASE + ', µs':<22}" + "".join(f"{_time(each, _BASE):8.1f}" for each in of_shape)
        for name in [name for name in names if name in _SHOWN or name.startswith("rows first")]:
            ratios = (_time(each, name) / _time(each, _BASE) for each in of_shape)
            yield f"  {name:<22}" + "".join("       -" if math.isnan(ratio) else f"{ratio:8.2f}" for ratio in ratios)


def _time(figure: Mapping[str, Any], name: str) -> float:
    time = figure["us"].get(name)
    return math.nan if time is None else float(time)


def floors_table(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Every other kernel's µs and, in parentheses, what a read of its bytes takes."""
    for section in ("integers", "attention", "elementwise", "drawing"):
        for each in figures.get(section, []):
            floors = each["floor_us"]
            parts = [
                f"{name} {'-' if time is None else f'{time:.1f}'} "
                f"({floors[name] if isinstance(floors, Mapping) else floors:.1f})" for name, time in each["us"].items()]
            library = f"  cuBLAS fp16 {each['cublas_us']:.1f}" if "cublas_us" in each else ""
            yield f"{section}, {_case(each)}: " + "  ".join(parts) + library


_COMPARED = ("both", "high, 16-bit")


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What two runs both have, before → after: products relative to the library's in their own run, the rest in µs."""
    then = {(each["outputs"], each["inputs"], each["rows"]): each for each in before.get("linear", [])}
    now = [each for each in after.get("linear", []) if (each["outputs"], each["inputs"], each["rows"]) in then]
    for shape in dict.fromkeys((each["outputs"], each["inputs"]) for each in now):
        for name in _COMPARED:
            parts = []
            for each in now:
                if (each["outputs"], each["inputs"]) == shape:
                    case = (*shape, each["rows"])
                    old = then[case]
                    ratios = (_time(run, name) / _time(run, _BASE) for run in (old, each))
                    parts.append(f"{each['rows']}: " + "→".join(f"{ratio:.2f}" for ratio in ratios))
            yield f"{shape[0]}x{shape[1]} {name:<13} " + "  ".join(parts)
    for section in ("attention", "elementwise", "layer"):
        old_cases = {_case(each): each["us"] for each in before.get(section, [])}
        for each in after.get(section, []):
            old_times = old_cases.get(_case(each), {})
            shown = "  ".join(f"{name} {old_times[name]:.1f}→{time:.1f}" for name, time in each["us"].items()
                              if name in old_times)
            if shown:
                yield f"{section}, {_case(each)}: {shown}"


def _case(figure: Mapping[str, Any]) -> str:
    """Everything that tells a measured case from the others."""
    names = ("model", "outputs", "inputs", "kind", "rows", "pieces", "sequences", "queries", "length")
    return " ".join(f"{name} {figure[name]}" for name in names if name in figure)
