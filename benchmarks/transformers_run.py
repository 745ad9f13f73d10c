"""transformers ``generate`` in fp32 on the same prompts, in a process of its own.

It loads the model's own files (GGUF or a checkpoint) by itself, so that it is a second opinion on the text as well. It
has its own process because its threads and ours must not meet, and it runs after the stacks have ended. OpenMP is left
as a user of transformers has it, except for the number of threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.environment import ROOT
from benchmarks.samples import Sample, first_difference
from qspec.errors import QspecError
from qspec.models.converted import prepare_tokenizer
from qspec.models.resolve import SourceKind, resolve
from qspec.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

WARM_UP_TOKENS = 16
TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """transformers' texts."""

    samples: tuple[Sample, ...]
    """One for each prompt."""
    logit_gaps: tuple[float | None, ...]
    """Where a text differs from ours: by how much its token's logit exceeds the second best there; else None."""
    load_s: float
    """Loading the model, outside all other times."""


def run_transformers(
    model: str, prompts: Sequence[tuple[int, ...]], ours: Sequence[tuple[int, ...]], *, max_tokens: int, threads: int
) -> Reference:
    """Generate greedily for ``prompts`` (tokens) and compare with the texts ``ours``. ``QspecError`` if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    job = {"model": model, "prompts": prompts, "ours": ours, "max_tokens": max_tokens, "threads": threads}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.transformers_run"], cwd=ROOT, input=json.dumps(job), stdout=subprocess.PIPE,
        encoding="utf-8", timeout=TIMEOUT_S, check=False, env=environment,
    )
    if result.returncode != 0:
        raise QspecError(f"the transformers run ended with exit code {result.returncode}: see above")
    answer = json.loads(result.stdout.splitlines()[-1])
    samples = tuple(Sample.from_json(record) for record in answer["samples"])
    return Reference(samples=samples, logit_gaps=tuple(answer["logit_gaps"]), load_s=answer["load_s"])


class _Clock:
    """A streamer that notes when tokens come: the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate`` with the prompt, then with every token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by ``generate`` at the end."""


def main() -> int:
    """The process of its own: a job on standard input, the answer as the last line of standard output."""
    job = json.load(sys.stdin)
    import torch

    torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    model = _load(job["model"])
    load_s = time.perf_counter() - started
    eos = sorted(Tokenizer.load(prepare_tokenizer(job["model"])).eos_token_ids)
    _generate(model, job["prompts"][0], min(WARM_UP_TOKENS, job["max_tokens"]), eos)
    samples = []
    for index, prompt in enumerate(job["prompts"]):
        sys.stderr.write(f"prompt {index + 1} of {len(job['prompts'])}: transformers\n")
        samples.append(_generate(model, prompt, job["max_tokens"], eos))
    gaps = [
        _logit_gap(model, prompt, sample.token_ids, tuple(ours))
        for prompt, sample, ours in zip(job["prompts"], samples, job["ours"], strict=True)
    ]
    print(json.dumps({"samples": [asdict(sample) for sample in samples], "logit_gaps": gaps, "load_s": load_s}))
    return 0


def _load(name: str) -> Any:
    """The model in fp32, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = resolve(name)
    if source.kind is SourceKind.CONVERTED:
        raise QspecError(f"{name} is in a form that transformers cannot read; compare with what it was made from")
    if source.kind is SourceKind.GGUF:
        directory, options = source.path.parent, {"gguf_file": source.path.name}
    else:
        directory, options = source.path, {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options).eval()


def _generate(model: Any, prompt: Sequence[int], max_tokens: int, eos: list[int]) -> Sample:
    """One greedy text with a KV cache."""
    import torch
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=max_tokens, eos_token_id=eos or None,
        pad_token_id=eos[0] if eos else 0,
    )
    tokens = torch.tensor([list(prompt)])
    clock = _Clock()
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=settings, streamer=clock)
    wall_s = time.perf_counter() - started
    return Sample(
        prompt_tokens=len(prompt), token_ids=tuple(output[0, len(prompt):].tolist()),
        first_token_s=clock.times[1] - started, total_s=clock.times[-1] - started, wall_s=wall_s,
    )


def _logit_gap(model: Any, prompt: Sequence[int], text: tuple[int, ...], ours: tuple[int, ...]) -> float | None:
    """How clear the reference's choice was at the first token that differs; None where the texts are equal."""
    import torch

    position = first_difference(text, ours)
    if position is None:
        return None
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *text[:position]]])).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    return float(best - second)


if __name__ == "__main__":
    sys.exit(main())
