"""What a run found, in one file that is written after every measurement, so that a run can be stopped and resumed.

A section's record has named cells, those that failed and why, and those that there was no time for; it is complete when
neither are left. A cell that took its process along (a fault of the GPU ends every later call of a process) is found by
the mark that it was begun, and counts as failed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

Tell = Callable[[str], None]
Clock = Callable[[], float]


class GpuLost(Exception):
    """A fault of the GPU: this process can measure nothing more."""


class Section:
    """One section's record, and the time that it has."""

    def __init__(
        self, record: dict[str, Any], write: Callable[[], None], *, deadline: float, tell: Tell,
        clock: Clock = time.monotonic,
    ) -> None:
        """``deadline``: of ``clock``, after which nothing new is begun."""
        self.record, self.tell = record, tell
        self._write, self._deadline, self._clock = write, deadline, clock

    @property
    def cells(self) -> dict[str, Any]:
        """What was measured, by name."""
        cells: dict[str, Any] = self.record["cells"]
        return cells

    def note(self, name: str, value: Any) -> None:
        """Keep something that describes the section."""
        self.record["about"][name] = value
        self._write()

    def wants(self, names: Iterable[str]) -> bool:
        """Whether any of these cells is to be measured; when time is up they are noted as left out."""
        missing = [name for name in names if name not in self.cells and name not in self.record["failed"]]
        there_is_time = [self._has_time_for(name) for name in missing]  # each is asked, so that each is noted
        return any(there_is_time)

    def measure(self, name: str, measurement: Callable[[], Any]) -> Any:
        """The cell ``name``: what is there, or made now; None when it failed or time is up. ``GpuLost`` ends a run."""
        if name in self.cells:
            return self.cells[name]
        if name in self.record["failed"] or not self._has_time_for(name):
            return None
        self.record["begun"] = name
        self._write()
        try:
            self.cells[name] = measurement()
        except Exception as error:  # noqa: BLE001  (one cell's failure must not cost the others)
            self.fail(name, error)
            return None
        finally:
            self.record.pop("begun", None)
            self._write()
        return self.cells[name]

    def fail(self, name: str, error: Exception) -> None:
        """Note that ``name`` failed; ``GpuLost`` where nothing else could succeed."""
        if isinstance(error, GpuLost):
            raise error
        traceback.print_exc()
        self.record["failed"][name] = f"{type(error).__name__}: {error}"[:600]
        self.tell(f"FAILED {name}: {self.record['failed'][name]}")
        self._write()
        if gpu_is_lost():
            raise GpuLost(name) from error
        free_gpu()

    def finish(self) -> None:
        """Note whether all is there."""
        self.record["complete"] = not self.record["failed"] and not self.record["left"]
        self._write()

    def _has_time_for(self, name: str) -> bool:
        if self._clock() <= self._deadline:
            return True
        if name not in self.record["left"]:
            self.record["left"].append(name)
            self.tell(f"OUT OF TIME before {name}: run the section again")
        return False


class ResultsFile:
    """All sections' records by name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sections: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.sections = json.loads(path.read_text("utf-8"))["sections"]

    def section(
        self, name: str, environment: Mapping[str, Any], *, deadline: float, tell: Tell, again: bool = False,
        retry: bool = True, clock: Clock = time.monotonic,
    ) -> Section:
        """The section ``name``, begun or to be gone on with.

        ``again``: forget what is there. ``retry``: try what failed before once more; without, what a process that
        ended had begun counts as failed.
        """
        record = {} if again else self.sections.get(name, {})
        failed = {} if retry else record.get("failed", {})
        if not retry and (begun := record.get("begun")) is not None:
            failed[begun] = "the process ended in it"
        environments = [*record.get("environments", []), dict(environment)]
        self.sections[name] = {
            "environments": environments, "about": record.get("about", {}), "cells": record.get("cells", {}),
            "failed": failed, "left": [], "complete": False}
        return Section(self.sections[name], self.write, deadline=deadline, tell=tell, clock=clock)

    def complete(self, name: str) -> bool:
        """Whether all of a section is there."""
        return bool(self.sections.get(name, {}).get("complete"))

    def write(self) -> None:
        """Replace the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"sections": self.sections}, indent=1) + "\n", "utf-8")
        partial.replace(self._path)


def gpu_is_lost() -> bool:
    """Whether this process's context is broken."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def free_gpu() -> None:
    """Give back what nobody holds."""
    if torch.cuda.is_initialized():
        gc.collect()
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
