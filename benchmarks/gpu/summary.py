"""The products' times as a short table: for people, and for terminals that keep the last lines only."""

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
