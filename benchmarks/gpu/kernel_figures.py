"""Figures of kernels out of a file of results: the present form, and the one of the first runs on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SECTIONS = ("linear", "integers", "attention", "elementwise", "drawing", "layer")


def kernel_figures(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """A list for each section that is there; ``results``: records by section, a whole file, or one of lists."""
    records = results.get("sections", results)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in SECTIONS:
        record = records.get(name)
        if record:
            found[name] = list(record) if isinstance(record, list) else list(record["cells"].values())
    return found
