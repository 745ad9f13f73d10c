"""What the sections share: the device, the table in use, where results go, and when time is up."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.shapes import LLAMA_8B, QUICK_ROWS, ROWS, SMOLLM2_7, TRIAL, ModelShape
from qspec.kernels.triton.tuned import TunedTable, table_for


@dataclass
class BenchRun:
    """One run of the benchmark."""

    device: torch.device
    output: Path
    seconds: float
    """For each section: what is left undone after it is named."""
    quick: bool = False
    """Fewer numbers of rows, fewer cases, and only kernels that are in use."""
    started: float = field(default_factory=time.monotonic)

    @property
    def models(self) -> tuple[ModelShape, ...]:
        """Whose shapes are measured; a tiny one where there is no GPU."""
        return (LLAMA_8B, SMOLLM2_7) if self.device.type == "cuda" else (TRIAL,)

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of rows."""
        if self.device.type != "cuda":
            return (1, 5)
        return QUICK_ROWS if self.quick else ROWS

    def table(self) -> TunedTable:
        """The table that a section ``tune`` of this run wrote, or the checked-in one."""
        tuned = self.output / "hopper.json"
        if tuned.exists():
            return TunedTable.parse(json.loads(tuned.read_text("utf-8")))
        return table_for(torch.cuda.get_device_capability() if self.device.type == "cuda" else (9, 0))

    def begin(self) -> None:
        """Start a section's clock."""
        self.started = time.monotonic()

    def time_is_up(self, doing: str) -> bool:
        """Whether the section has to stop; says what it leaves out."""
        up = time.monotonic() - self.started > self.seconds
        if up:
            self.tell(f"OUT OF TIME before {doing}")
        return up

    def tell(self, line: str) -> None:
        """A line for whoever watches."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {line}", flush=True)

    def write(self, section: str, result: Any) -> None:
        """Keep a section's result."""
        path = self.output / f"{section}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """``‖out - exact‖ / ‖exact‖``; NaN stays NaN."""
    return float((out.double() - exact.double()).norm() / exact.double().norm())
