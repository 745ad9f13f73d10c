"""What the sections share: the device, the model, the pair, the table of tiles, and how much is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.gpu.results_file import ResultsFile, Section
from benchmarks.gpu.shapes import LLAMA_8B, ROWS, SMOLLM2_7, SWEEP, TRIAL, ModelShape
from qspec.config import DEFAULT_MODEL
from qspec.kernels.triton.tuned import TunedTable, table_for


@dataclass(frozen=True, kw_only=True)
class BenchRun:
    """One run of the benchmark."""

    output: Path
    """Folder of the results, and of a table of tiles that was measured."""
    results: ResultsFile
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    quick: bool = False
    """Fewer numbers of rows, fewer cases, and only kernels that are in use."""
    model: str = DEFAULT_MODEL
    """Alias, directory or GGUF file; SmolLM2, or the sections say what they are not."""
    draft: str = "fp8:plane"
    """The drafter's method, in sections of one pair."""
    verify: str = "none:fp16"
    batches: tuple[int, ...] = ()
    """Sequences at once; empty: what a section has planned."""
    lengths: tuple[int | None, ...] = ()
    """Draft lengths; None: the controller's; empty: what a section has planned."""
    samplings: tuple[str, ...] = ()
    """Names of ``decode_cells.SAMPLINGS``; empty: what a section has planned."""
    tokens: int = 96
    """Of each sequence that are measured."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is one; elsewhere the benchmark can only be tried out."""
        return self.device.type == "cuda"

    @property
    def models(self) -> tuple[ModelShape, ...]:
        """Whose kernels are measured; a tiny one where there is no GPU."""
        if not self.on_gpu:
            return (TRIAL,)
        return (LLAMA_8B,) if self.quick else (LLAMA_8B, SMOLLM2_7)

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of rows."""
        if not self.on_gpu:
            return (1, 5)
        return SWEEP if self.quick else ROWS

    def table(self) -> TunedTable:
        """The table that a section ``tune`` of this folder wrote, or the checked-in one."""
        tuned = self.output / "hopper.json"
        if tuned.exists():
            return TunedTable.parse(json.loads(tuned.read_text("utf-8")))
        return table_for(torch.cuda.get_device_capability() if self.on_gpu else (9, 0))

    def write_table(self, table: TunedTable) -> None:
        """What ``table`` gives from now on."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "hopper.json").write_text(json.dumps(table.to_json(), indent=1) + "\n", "utf-8")

    def name_with_pair(self, section: str) -> str:
        """A section's name in the results: with the pair where it is not the usual one."""
        usual = (BenchRun.draft, BenchRun.verify)
        return section if (self.draft, self.verify) == usual else f"{section} {self.draft} → {self.verify}"


Program = Callable[[Section, BenchRun], None]
"""Measures what a section lacks."""


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """``‖out - exact‖ / ‖exact‖``; NaN stays NaN."""
    return float((out.double() - exact.double()).norm() / exact.double().norm())
