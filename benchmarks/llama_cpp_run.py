"""llama.cpp on the same prompts' tokens and as many threads, after the stacks have ended.

It reads files with the very weights of our model, encoded as F16 and as Q8_0 (``benchmarks.gguf_encoding``), each in a
process of its own (``benchmarks.llama_cpp_process``), one after the other. OpenMP is left as a user of llama-cpp-python
has it, except for the number of threads.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.gguf_encoding import ENCODINGS, check_encodable, encoded_gguf
from benchmarks.memory import ProcessMemory
from benchmarks.samples import Sample
from qspec.errors import InvalidInput, QspecError
from qspec.models.converted import prepare_tokenizer
from qspec.models.resolve import resolve
from qspec.models.tokenizer import Tokenizer

REMEDY = "python -m pip install --constraint constraints.txt llama-cpp-python"
TIMEOUT_S = 3600
Job = Mapping[str, Any]
Runner = Callable[[Job], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """llama.cpp's texts from one file."""

    encoding: str
    """Of the weights: one of ``ENCODINGS``."""
    file_bytes: int
    samples: tuple[Sample, ...]
    """One for each prompt."""
    load_s: float
    """Loading the model, outside all other times."""
    memory: ProcessMemory
    """Of its process, Python included, after the last text."""
    version: str
    """llama-cpp-python's."""
    system: str
    """The instructions and libraries that it was built with and found, in its own words."""


def check_llama_cpp(model: str) -> None:
    """``InvalidInput``, with the remedy, where llama-cpp-python is missing or could not read ``model``."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise InvalidInput.field("--llama-cpp", f"needs llama-cpp-python; run (it compiles for minutes): {REMEDY}")
    check_encodable(resolve(model))


def run_in_process(job: Job) -> Mapping[str, Any]:
    """The answer of a new process to ``job``; ``QspecError`` when it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.llama_cpp_process"], cwd=ROOT, input=json.dumps(job), stdout=subprocess.PIPE,
        encoding="utf-8", timeout=TIMEOUT_S, check=False, env={**os.environ, "OMP_NUM_THREADS": str(job["threads"])},
    )
    if result.returncode != 0:
        raise QspecError(f"the llama.cpp run ended with exit code {result.returncode}: see above")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def run_llama_cpp(
    model: str, prompts: Sequence[tuple[int, ...]], *, max_tokens: int, threads: int, tell: Callable[[str], None],
    runner: Runner = run_in_process,
) -> tuple[LlamaCpp, ...]:
    """Generate greedily for ``prompts`` (tokens) from a file in each of ``ENCODINGS``.

    Raises ``ModelError`` when the files cannot be made and ``QspecError`` when a run fails.
    """
    source = resolve(model)
    end_tokens = sorted(Tokenizer.load(prepare_tokenizer(model)).eos_token_ids)
    runs = []
    for encoding in ENCODINGS:
        tell(f"llama.cpp: the model in {encoding}")
        file = encoded_gguf(source, encoding)
        answer = runner({
            "file": str(file), "encoding": encoding, "prompts": [list(prompt) for prompt in prompts],
            "max_tokens": max_tokens, "threads": threads, "end_tokens": end_tokens,
        })
        runs.append(LlamaCpp(
            encoding=encoding, file_bytes=file.stat().st_size, load_s=answer["load_s"], version=answer["version"],
            system=answer["system"], samples=tuple(Sample.from_json(record) for record in answer["samples"]),
            memory=ProcessMemory(**answer["memory"]),
        ))
    return tuple(runs)
