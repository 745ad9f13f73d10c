"""What ``auto`` means for a model on this machine: candidates, their timed steps, and the line that says why.

The verifier asks, because it is loaded first and knows the model; its description tells the drafter. So both agree
wherever they run, though timings never repeat exactly.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from qspec.config import StackConfig
from qspec.engine.step_time_cache import read_step_times, step_times_path, write_step_times
from qspec.interfaces import Progress, unwatched
from qspec.kernels.native.loading import INTERFACE, instruction_sets
from qspec.models.config import DecoderConfig
from qspec.models.converted import ConvertedModel
from qspec.pair_choice import Candidate, Kind, PairChoice, StepTimes, candidate_pairs, choose_pair
from qspec.pair_choice import kind as pair_kind
from qspec.quant.methods import AUTO, Backend, choose_draft
from qspec.threads import native_threads


def resolve_methods(
    config: StackConfig, model: ConvertedModel, backend: Backend, progress: Progress
) -> tuple[StackConfig, str]:
    """The configuration with plain names for both methods, and the reason for them (empty where both were named).

    ``InvalidInput`` where ``auto`` has nothing to choose from. Steps are timed at most once for a model's shape on a
    machine.
    """
    if AUTO not in (config.draft_quantization, config.verify_quantization):
        return config, ""
    candidates = candidate_pairs(config.draft_quantization, config.verify_quantization, backend, stored=model.stored)
    if backend is Backend.CUDA:
        candidates = _without_times(candidates)
    times = _times(candidates, config, model.config, progress) if len(candidates) > 1 else {}
    choice = choose_pair(candidates, times)
    if backend is Backend.CUDA:
        choice = _for_all_batches(choice, candidates[0])
    return config.settled(draft=choice.draft, verify=choice.verify), choice.reason


def _without_times(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The pair for a GPU: of those that keep one copy of weights, whose drafts of a plane read the same bytes at small
    batch, the one of which most is accepted.
    """
    from qspec.engine.gpu_support import fp8_absence, needs_fp8  # as late as the GPU

    able = [
        candidate for candidate in candidates
        if candidate.draft is None or fp8_absence() is None or not needs_fp8(candidate.draft.variant)
    ]
    candidates = able or candidates  # of which the worker then says what it lacks
    least = min(candidate.bits_per_weight for candidate in candidates)
    sharing = [candidate for candidate in candidates if candidate.bits_per_weight == least]
    return [max(sharing, key=lambda candidate: candidate.acceptance)]


def _for_all_batches(choice: PairChoice, candidate: Candidate) -> PairChoice:
    """The choice with the draft method's name alone where that means the same variant in small batches
    (``Variant.batched``), and the reason of a GPU.
    """
    method = choice.draft.partition(":")[0]
    meant = choose_draft(method, Backend.CUDA, verify=candidate.verify)
    same = meant is not None and candidate.draft is not None and meant.variant == candidate.draft.variant
    draft = method if same else choice.draft
    return replace(choice, draft=draft, reason=f"{draft} drafting for {choice.verify}, which reads least")


def _times(candidates: Sequence[Candidate], config: StackConfig, model: DecoderConfig, progress: Progress) -> StepTimes:
    from qspec.engine.native_forward import shared_threads  # loads the extension
    from qspec.engine.step_times import measure_step_times

    wanted: dict[Kind, tuple[int, ...]] = {}
    for candidate in sorted(candidates, key=lambda each: -each.acceptance):
        for kind, rows in candidate.rows().items():
            wanted[kind] = max(wanted.get(kind, ()), rows, key=len)
    verifiers = {pair_kind(candidate.verify) for candidate in candidates}
    wanted = dict(sorted(wanted.items(), key=lambda item: item[0] not in verifiers))  # all pairs need those
    threads = native_threads(config.threads, unwatched)
    path = step_times_path(model, _processor(), threads)
    known = read_step_times(path)
    missing = {  # what was once left out (no entries) is left out again, so that every start chooses alike
        kind: rows for kind, rows in wanted.items()
        if kind not in known or (known[kind] and not set(rows) <= set(known[kind]))
    }
    if missing:
        progress("timing steps of the formats that this machine has kernels for", None)
        started = time.perf_counter()
        known |= {kind: {} for kind in missing}
        known |= measure_step_times(model, missing, shared_threads(threads), least=len(verifiers) + 1)
        seconds = time.perf_counter() - started
        kept = f"kept in {path}" if write_step_times(path, known) else "not kept: the cache cannot be written"
        progress(f"timed {len(missing)} formats in {seconds:.1f} s, {kept}", None)
    return known


@lru_cache(maxsize=1)
def _processor() -> str:
    """This processor and the kernels' version for it."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}|{','.join(instruction_sets())}|{INTERFACE}"
