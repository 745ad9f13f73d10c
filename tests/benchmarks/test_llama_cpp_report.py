"""Figures and verdicts of the comparison with llama.cpp, from made-up samples."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.gguf_encoding import ENCODINGS
from benchmarks.llama_cpp_report import llama_cpp_figures, llama_cpp_samples, llama_cpp_verdicts
from benchmarks.llama_cpp_run import LlamaCpp
from benchmarks.memory import ProcessMemory
from benchmarks.report import configuration_figures
from benchmarks.samples import Sample
from tests.benchmarks.test_report import TEXTS, made_up_run
from tests.benchmarks.texts import plain_sample


def process(program: str, size: int) -> ProcessMemory:
    """RSS is twice its PSS."""
    return ProcessMemory(pid=1, program=program, proportional=size, resident=2 * size, private=size)


def llama_cpp(encoding: str, *texts: tuple[int, ...], step_s: float) -> LlamaCpp:
    """One of its runs, at ``step_s`` a token."""
    samples: tuple[Sample, ...] = tuple(
        replace(plain_sample(text, step_s=step_s), speculation=None) for text in texts)
    return LlamaCpp(encoding=encoding, file_bytes=10, samples=samples, load_s=0.5, version="1", system="CPU",
                    memory=process("llama", 200))


def test_speed_agreement_and_memory_are_beside_ours() -> None:
    stack = replace(made_up_run(), memory=(process("verifier", 300), process("drafter", 100)))
    other = (*TEXTS[1][:5], 7, *TEXTS[1][6:])
    runs = [llama_cpp("F16", *TEXTS, step_s=0.2), llama_cpp("Q8_0", TEXTS[0], other, step_s=0.04)]
    figures = configuration_figures(stack, None, llama_cpp_samples(runs))
    assert figures["llama.cpp F16"]["decode_tokens_per_s"]["median"] == pytest.approx(5.0)
    assert figures["llama.cpp F16"]["ratio_to_plain"]["median"] == pytest.approx(0.4)
    found = llama_cpp_figures(stack, runs, figures)
    assert found is not None
    json.dumps(found, allow_nan=False)
    auto_s = 4 * (4 * 0.02 + 0.12)
    f16, q8 = found["encodings"]["F16"], found["encodings"]["Q8_0"]
    assert f16["auto_ratio"]["median"] == pytest.approx(16 * 0.2 / auto_s)
    assert q8["auto_ratio"]["median"] == pytest.approx(16 * 0.04 / auto_s)
    assert f16["stack_memory_ratio"] == {"proportional": 2.0, "resident": 2.0}
    assert f16["memory"] == {"proportional": 200, "resident": 400}
    assert f16["agreement"] == {
        "prompts": 2, "equal": 2, "tokens": 34, "tokens_before_differences": 34, "differences": []}
    assert q8["agreement"] == {
        "prompts": 2, "equal": 1, "tokens": 34, "tokens_before_differences": 22,
        "differences": [{"prompt": 1, "position": 5}]}
    assert [(verdict.target, verdict.met) for verdict in llama_cpp_verdicts(found)] == [
        ("auto past llama.cpp F16", True), ("auto past llama.cpp Q8_0", False)]


def test_without_the_option_nothing_is_claimed() -> None:
    figures = configuration_figures(made_up_run(), None)
    assert llama_cpp_figures(made_up_run(), [], figures) is None
    verdicts = llama_cpp_verdicts(None)
    assert [verdict.met for verdict in verdicts] == [None] * len(ENCODINGS)
    assert all("--llama-cpp" in verdict.measured for verdict in verdicts)
