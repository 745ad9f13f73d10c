"""One section's results on disk: written after every measurement, so that a section can be stopped and resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class SectionFile:
    """A JSON object with named measurements."""

    def __init__(self, path: Path, deadline: float) -> None:
        """``deadline``: of ``time.perf_counter``, after which nothing new is begun."""
        self._path, self._deadline = path, deadline
        self.record: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def forget(self) -> None:
        """Start over."""
        self.record = {}

    def put(self, name: str, value: Any) -> None:
        """Keep a measurement."""
        self.record[name] = value
        self._path.write_text(json.dumps(self.record, indent=1) + "\n", "utf-8")

    def missing(self, names: list[str]) -> list[str]:
        """Those that are not there yet."""
        return [name for name in names if name not in self.record]

    def measure(self, name: str, measurement: Callable[[], Any], tell: Callable[[str], object]) -> Any:
        """The measurement ``name``: what is there, or made now; None when time is up."""
        if name not in self.record:
            if time.perf_counter() > self._deadline:
                tell(f"OUT OF TIME before {name}: run the section again")
                return None
            self.put(name, measurement())
        return self.record[name]
