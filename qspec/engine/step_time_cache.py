"""Timed steps, kept in the cache: a stack that starts again chooses as it chose before, and at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qspec.config import cache_directory
from qspec.models.config import DecoderConfig
from qspec.pair_choice import Kind, StepTimes

VERSION = 1
"""Raised whenever the figures come to mean something else."""


def step_times_path(model: DecoderConfig, processor: str, threads: int) -> Path:
    """Where the figures of a model's shape on a processor are."""
    described = json.dumps([VERSION, model.to_json(), processor, threads], sort_keys=True)
    return cache_directory() / "step-times" / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.json"


def read_step_times(path: Path) -> dict[Kind, Mapping[int, float]]:
    """What was kept; nothing where there is no file, or not one of ours."""
    try:
        record = json.loads(path.read_text("utf-8"))
        return {
            (str(weights), str(activations)): {int(rows): _positive(seconds) for rows, seconds in times.items()}
            for weights, activations, times in record["steps"]
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def write_step_times(path: Path, times: StepTimes) -> bool:
    """Keep figures; whether that was possible (a cache may be read-only: then they are taken at every start)."""
    record = {"steps": [[weights, activations, found] for (weights, activations), found in times.items()]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        Path(name).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        return False
    return True


def _positive(seconds: object) -> float:
    if not isinstance(seconds, float) or not 0 < seconds < float("inf"):
        raise ValueError(f"{seconds!r} is no time")
    return seconds
