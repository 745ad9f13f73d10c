"""llama.cpp on one GGUF file: a process of its own, whose memory is measured in the end.

A job comes on standard input, the answer is the last line of standard output; ``benchmarks.llama_cpp_run`` starts it.
Only llama-cpp-python and the standard library are loaded, so that nothing of ours counts in its memory, and everything
that a user of llama-cpp-python does not set is left as it is: batches of 512, the file mapped, a cache in F16.

Greedy decoding takes the package's own sampler, and the same end-of-sequence tokens as our stack. The context is
emptied before each text: its prefill is whole, whatever the texts have in common.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Protocol

from benchmarks.memory import read_memory
from benchmarks.samples import Sample

WARM_UP_TOKENS = 16


class Model(Protocol):
    """What is used of ``llama_cpp.Llama``."""

    def reset(self) -> None:
        """Empty the context."""

    def generate(self, tokens: Sequence[int], *, temp: float) -> Iterator[int]:
        """Tokens after ``tokens``, without an end."""


def main() -> int:
    """Load, warm up, generate for every prompt, and say what it took."""
    job = json.load(sys.stdin)
    import llama_cpp

    prompts, most = job["prompts"], job["max_tokens"]
    started = time.perf_counter()
    model = llama_cpp.Llama(
        job["file"], n_ctx=max(map(len, prompts)) + most, n_threads=job["threads"], n_threads_batch=job["threads"],
        verbose=False,
    )
    load_s = time.perf_counter() - started
    generate(model, prompts[0], min(WARM_UP_TOKENS, most), job["end_tokens"])
    samples = []
    for index, prompt in enumerate(prompts):
        sys.stderr.write(f"prompt {index + 1} of {len(prompts)}: llama.cpp {job['encoding']}\n")
        samples.append(generate(model, prompt, most, job["end_tokens"]))
    print(json.dumps({
        "samples": [asdict(sample) for sample in samples], "load_s": load_s, "memory": asdict(read_memory(os.getpid())),
        "version": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode().strip(),
    }))
    return 0


def generate(model: Model, prompt: Sequence[int], max_tokens: int, end_tokens: Collection[int]) -> Sample:
    """One greedy text: ``max_tokens`` tokens, or until one of ``end_tokens``, which belongs to it."""
    model.reset()
    tokens, times = [], []
    started = time.perf_counter()
    for token in model.generate(prompt, temp=0.0):
        times.append(time.perf_counter() - started)
        tokens.append(int(token))
        if len(tokens) == max_tokens or token in end_tokens:
            break
    return Sample(
        prompt_tokens=len(prompt), token_ids=tuple(tokens), first_token_s=times[0], total_s=times[-1],
        wall_s=time.perf_counter() - started,
    )


if __name__ == "__main__":
    sys.exit(main())
