"""What was promised, against what was measured: a line each, over all sections that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.decode_cells import AUTO
from benchmarks.gpu.decode_costs import cost_rows, plain_rate
from benchmarks.gpu.shapes import LLAMA_8B

Records = Mapping[str, Mapping[str, Any]]
BATCHES = (1, 8, 32, 64)
LEAST_OVER_PLAIN = 0.98
EXPECTED = {("x12", 1): 1.4, ("x12", 8): 1.4, ("x12", 32): 1.2, ("x7", 1): 1.25}
"""Speed-up of the best draft length, greedy, by section and batch."""
_OVERHEAD_BATCH, _OVERHEAD_LENGTH = 1, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One promise."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it was."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def line(self) -> str:
        """For people."""
        bound = f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
        return f"{'ok    ' if self.kept else 'MISSED'} {self.name}: {self.value:.3f} ({bound})"

    def to_json(self) -> dict[str, Any]:
        """What ``line`` says."""
        return {**asdict(self), "kept": self.kept}


def verdicts(records: Records) -> list[Verdict]:
    """All that can be told from what was measured."""
    found: list[Verdict] = []
    for name in ("x7", "x12", "x1"):
        if name in records:
            found += _cells(name, records)
    return [*found, *_stacks(records), *_transformers(records), *_kernels(records)]


def fastest_plain(name: str, records: Records, batch: int) -> float | None:
    """Tokens per second of greedy plain decoding: of the two planes, or of the library where that is faster."""
    rates = [plain_rate(records.get(each, {}).get("cells", {}), "greedy", batch)
             for each in (name, f"plain-cublas-{name}")]
    return max((rate for rate in rates if rate is not None), default=None)


def _cells(name: str, records: Records) -> Iterator[Verdict]:
    record = records[name]
    about, rows = record["about"], list(cost_rows(record["cells"]))
    plain_alone = plain_rate(record["cells"], "greedy", 1)
    if name != "x1" and plain_alone is not None:
        floor_s = about["step_bytes"] / about["read_bytes_per_s"]
        yield Verdict(name=f"{name}, batch 1: plain decoding's share of a pure read, the host's time included",
                      value=plain_alone * floor_s, least=0.75)
    if "arena_over_fp16" in about:
        yield Verdict(name=f"{name}: arena over fp16 weights and KV blocks", value=about["arena_over_fp16"], most=1.03)
    for row in rows:
        if row["made_good"] is not None and row["sampling"] in ("greedy", "rejection"):
            yield Verdict(name=f"{name}, {row['name']}: measured over promised", value=row["made_good"], least=0.9)
    for batch in BATCHES:
        of_batch = [row for row in rows if (row["sampling"], row["batch"]) == ("greedy", batch)]
        plain = fastest_plain(name, records, batch)
        if plain is None or not of_batch:
            continue
        best = max(row["tokens_per_s"] for row in of_batch)
        expected = EXPECTED.get((name, batch))
        if expected is not None:
            yield Verdict(name=f"{name}, batch {batch}: best over the faster plain decoding", value=best / plain,
                          least=expected)
        for row in of_batch:
            if row["k"] == AUTO:
                yield Verdict(name=f"{name}, batch {batch}: auto over the faster plain decoding",
                              value=row["tokens_per_s"] / plain, least=LEAST_OVER_PLAIN)


def _stacks(records: Records) -> Iterator[Verdict]:
    for name in ("stack-x7", "stack-x1"):
        for cell, found in records.get(name, {}).get("cells", {}).items():
            if "ratio" in found:
                yield Verdict(name=f"{name}, {cell}", value=found["ratio"], least=LEAST_OVER_PLAIN)
            if "seconds" in found and found["stack_batch"] == _OVERHEAD_BATCH and found["k"] == _OVERHEAD_LENGTH:
                alone = _calls_in_process(records.get(name.removeprefix("stack-"), {}).get("cells", {}))
                wall, workers = found["seconds"]["wall"], found["seconds"]["workers"]
                yield Verdict(name=f"{name}, {cell}: RPC, scheduling and what lies between rounds, share of a round",
                              value=1 - workers / wall, most=0.08)
                if alone is not None:
                    yield Verdict(name=f"{name}, {cell}: the same with turns, over the calls in one process",
                                  value=1 - alone / wall, most=0.08)


def _calls_in_process(cells: Mapping[str, Any]) -> float | None:
    """Seconds of a round's calls in one process."""
    cell = cells.get(f"greedy batch {_OVERHEAD_BATCH} k {_OVERHEAD_LENGTH}")
    if cell is None:
        return None
    return float(cell["draft_step_s"] * cell["mean_draft_length"] + cell["verify_s"])


def _transformers(records: Records) -> Iterator[Verdict]:
    """Against the fastest of their runs: the first ones may compile or load something yet."""
    for name in ("x7", "x12"):
        theirs, ours = records.get(f"transformers-{name}", {}).get("cells", {}), records.get(name, {}).get("cells", {})
        for batch, least in ((1, 10.0), (8, 8.0)):
            found = [row for row in cost_rows(ours) if (row["sampling"], row["batch"]) == ("greedy", batch)]
            if found and f"batch {batch}" in theirs:
                best = max(row["tokens_per_s"] for row in found)
                yield Verdict(name=f"{name}, batch {batch}: best over transformers' generate",
                              value=best / max(theirs[f"batch {batch}"]["all"]), least=least)
        if "assisted, batch 1" in theirs and (best := max(
                (row["tokens_per_s"] for row in cost_rows(ours) if (row["sampling"], row["batch"]) == ("greedy", 1)),
                default=0.0)):
            yield Verdict(name=f"{name}, batch 1: best over transformers' assisted generation",
                          value=best / max(theirs["assisted, batch 1"]["all"]), least=1.0)


def _kernels(records: Records) -> Iterator[Verdict]:
    shapes = [*LLAMA_8B.linears.values(), (LLAMA_8B.vocabulary, LLAMA_8B.hidden)]
    for figure in records.get("linear", {}).get("cells", {}).values():
        ours, library = figure["us"].get("both"), figure["us"].get("cuBLAS fp16")
        if (figure["outputs"], figure["inputs"]) in shapes and figure["rows"] <= 256 and ours and library:
            yield Verdict(
                name=f"{figure['outputs']}×{figure['inputs']}, {figure['rows']} rows: two planes over cuBLAS",
                value=ours / library, most=1.1 if figure["rows"] <= 64 else 1.25)
