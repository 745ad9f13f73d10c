"""The comparison with llama.cpp: figures, and whether we pass it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gguf_encoding import ENCODINGS
from benchmarks.llama_cpp_run import LlamaCpp
from benchmarks.report import Verdict
from benchmarks.samples import Sample, first_difference
from benchmarks.stack_run import AUTO, PLAIN, StackRun
from benchmarks.statistics import median_interval


def configuration_name(encoding: str) -> str:
    """What the table calls llama.cpp with weights in ``encoding``."""
    return f"llama.cpp {encoding}"


def llama_cpp_samples(runs: Sequence[LlamaCpp]) -> dict[str, tuple[Sample, ...]]:
    """Its texts by configuration, for ``report.configuration_figures``."""
    return {configuration_name(run.encoding): run.samples for run in runs}


def llama_cpp_figures(
    stack: StackRun, runs: Sequence[LlamaCpp], figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """By encoding: speed, agreement with plain decoding, memory; None without runs. JSON-able, bytes and seconds.

    ``figures`` are all configurations', llama.cpp's among them (``report.configuration_figures``).
    """
    if not runs:
        return None
    stack_memory = _memory([asdict(process) for process in stack.memory])
    auto = figures[AUTO.name]["decode_tokens_per_s"]
    found: dict[str, Any] = {}
    for run in runs:
        rates = figures[configuration_name(run.encoding)]["decode_tokens_per_s"]
        memory = _memory([asdict(run.memory)])
        found[run.encoding] = {
            "decode_tokens_per_s": rates,
            "auto_ratio": asdict(median_interval([
                ours / theirs for ours, theirs in zip(auto["per_prompt"], rates["per_prompt"], strict=True)])),
            "agreement": _agreement(stack.samples[PLAIN.name], run.samples),
            "memory": memory,
            "stack_memory_ratio": {kind: stack_memory[kind] / size for kind, size in memory.items()},
            "file_bytes": run.file_bytes,
            "load_s": run.load_s,
        }
    return {"version": runs[0].version, "system": runs[0].system, "stack_memory": stack_memory, "encodings": found}


def llama_cpp_verdicts(found: Mapping[str, Any] | None) -> list[Verdict]:
    """Whether ``auto`` is faster than each encoding, from ``llama_cpp_figures``."""
    verdicts = []
    for encoding in ENCODINGS:
        target = f"{AUTO.name} past {configuration_name(encoding)}"
        if found is None:
            verdicts.append(Verdict(target=target, met=None, measured="not measured (--llama-cpp measures it)"))
            continue
        ratio = found["encodings"][encoding]["auto_ratio"]
        verdicts.append(Verdict(
            target=target, met=ratio["median"] > 1,
            measured=f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"))
    return verdicts


def _agreement(ours: Sequence[Sample], theirs: Sequence[Sample]) -> dict[str, Any]:
    """How far our plain decoding and llama.cpp write the same."""
    positions = [first_difference(other.token_ids, sample.token_ids)
                 for sample, other in zip(ours, theirs, strict=True)]
    return {
        "prompts": len(positions),
        "equal": sum(position is None for position in positions),
        "tokens": sum(len(sample.token_ids) for sample in ours),
        "tokens_before_differences": sum(
            len(sample.token_ids) if position is None else position
            for sample, position in zip(ours, positions, strict=True)),
        "differences": [{"prompt": index, "position": position}
                        for index, position in enumerate(positions) if position is not None],
    }


def _memory(processes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sums over processes, in bytes: PSS, and RSS, which counts a page once in each that maps it."""
    return {kind: sum(process[kind] for process in processes) for kind in ("proportional", "resident")}
