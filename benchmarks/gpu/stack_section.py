"""The whole stack on a GPU, as processes over gRPC: what lies between the calls, and drafts against plain decoding.

Of a round's wall-clock time, from one token to the next as the coordinator counts it: *workers* is what the two report
of their own calls, *RPC* what calls take beyond that, *scheduling* what the loop takes beyond its calls, *between* what
lies between two rounds. Turns between the processes hide in what the workers report: ``verdicts`` compares it with the
same calls in one process. Every text has its full length (``ignore_eos``), and each cell is run once before it counts:
that captures its graphs. Repeats of plain decoding and of the controller's draft lengths take turns; they are compared
while all texts of a batch are being decoded.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import AUTO
from benchmarks.gpu.in_process import benchmark_prompts
from benchmarks.gpu.results_file import Section
from benchmarks.gpu.stack_processes import serving_stack
from benchmarks.samples import Sample, rate_together
from benchmarks.stack_run import Configuration, stack_text, stack_tokens
from qspec.client import AsyncClient
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.quant.methods import Backend

MPS = "MPS"
_MOST_PROMPT_TOKENS = 400
_ALONE = 4
"""Texts one after the other where one is decoded at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """What to measure of one stack."""

    factor: int
    rounds: tuple[tuple[int, int], ...] = ((1, 4), (1, 0), (8, 4))
    """(batch, draft length) of which it is told where a round's time goes."""
    compared: tuple[int, ...] = (1, 8, 32, 64)
    """Batches at which the controller is held against plain decoding."""
    repeats: int = 3
    tokens: int = 160
    positions: int = 1024
    """Of a sequence."""
    conditions: tuple[str, ...] = (MPS, "no MPS")
    """Stacks that are started, one after the other."""

    @property
    def slots(self) -> int:
        """Sequences at once."""
        return max(*(batch for batch, _ in self.rounds), *self.compared)


STACKS = {f"stack-x{factor}": StackPlan(factor=factor) for factor in (7, 1)}


def measure_stack(section: Section, run: BenchRun, plan: StackPlan, *, device: str = "cuda") -> None:
    """Measure what ``section`` lacks: all of it under MPS, rounds without it, too."""
    config = StackConfig(
        model=run.model, device=device, draft_quantization=run.draft, verify_quantization=run.verify,
        max_slots=plan.slots, kv_tokens=plan.slots * plan.positions, max_model_len=plan.positions)
    on_gpu = configured_backend(config) is Backend.CUDA
    for label in plan.conditions:
        asyncio.run(_measure(section, config, plan, label, on_gpu=on_gpu))


async def _measure(section: Section, config: StackConfig, plan: StackPlan, label: str, *, on_gpu: bool) -> None:
    mps = label == MPS
    rounds = {f"{label}, rounds, batch {batch} k {length}": (batch, length) for batch, length in plan.rounds}
    compared = {f"{label}, auto over plain, batch {batch}": batch for batch in plan.compared} if mps else {}
    memory = f"{label}, memory"
    if not section.wants([*rounds, *compared, memory]):
        return
    used = _device_usage() if on_gpu else lambda: 0
    before = used()
    async with serving_stack(config, plan.factor, mps=mps and on_gpu, tell=section.tell) as client:
        started = used()
        section.tell(f"{label}: the stack serves")
        prompts = [await stack_tokens(client, prompt, _MOST_PROMPT_TOKENS) for prompt in benchmark_prompts()]
        texts = _Texts(client, prompts, plan.tokens)
        for name, (batch, length) in rounds.items():
            await _cell(section, name, partial(texts.rounds, batch, length))
        for name, batch in compared.items():
            await _cell(section, name, partial(texts.compared, batch, plan.repeats))
        await _cell(section, memory, partial(_memory, client, lambda: (started - before, used() - before)))


async def _memory(client: AsyncClient, device: Callable[[], tuple[int, int]]) -> dict[str, Any]:
    """What the server lists, and by how much the whole device's use has changed since before the start."""
    info = await client.server_info()
    at_start, at_end = device()
    lines = [{"owner": line.owner, "name": line.name, "bytes": line.bytes, "shared": line.shared}
             for line in info.memory]
    return {"lines": lines, "listed_bytes": sum(line.bytes for line in info.memory),
            "device_bytes_at_start": at_start, "device_bytes_at_end": at_end}


async def _cell(section: Section, name: str, measure: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """A cell that is awaited."""
    if not section.wants([name]):
        return
    try:
        value = await measure()
    except Exception as error:  # noqa: BLE001  (one cell's failure must not cost the others)
        section.fail(name, error)
        return
    section.measure(name, lambda: value)
    section.tell(f"{name}: {value}"[:300])


@dataclass(frozen=True, slots=True)
class _Texts:
    """Asks for texts."""

    client: AsyncClient
    prompts: Sequence[tuple[int, ...]]
    tokens: int

    async def rounds(self, batch: int, length: int) -> dict[str, Any]:
        """Where a round's time goes."""
        await self._together(batch, length)
        if batch == 1:
            samples = [(await self._together(1, length, first))[0] for first in range(_ALONE)]
        else:
            samples = await self._together(batch, length)
        return {"stack_batch": batch, "k": length, **round_figures(samples),
                "decode_tokens_per_s": batch * statistics.median(sample.decode_rate for sample in samples)}

    async def compared(self, batch: int, repeats: int) -> dict[str, Any]:
        """The controller against plain decoding, by turns: while all texts are being decoded, and to the last's end."""
        rates: dict[str, list[float]] = {AUTO: [], "plain": []}
        to_the_end: dict[str, list[float]] = {AUTO: [], "plain": []}
        lengths: dict[str, int | None] = {AUTO: None, "plain": 0}
        drafted = accepted = 0
        for repeat in range(-1, repeats):
            for name in (AUTO, "plain") if repeat % 2 else ("plain", AUTO):
                samples = await self._together(batch, lengths[name])
                if repeat < 0:
                    continue  # graphs
                rates[name].append(rate_together(samples))
                to_the_end[name].append(
                    sum(each.decode_tokens for each in samples) / max(each.decode_s for each in samples))
                if name == AUTO:
                    drafted += sum(each.speculation.drafted for each in samples if each.speculation)
                    accepted += sum(each.speculation.accepted for each in samples if each.speculation)
        ratios, ratios_to_the_end = ([auto / plain for auto, plain in zip(of[AUTO], of["plain"], strict=True)]
                                     for of in (rates, to_the_end))
        return {"stack_batch": batch, "tokens_per_s": rates, "ratios": ratios, "ratio": statistics.median(ratios),
                "ratios_to_the_end": ratios_to_the_end,
                "accepted_share": accepted / drafted if drafted else None}

    async def _together(self, batch: int, length: int | None, first: int = 0) -> list[Sample]:
        how = Configuration(name=f"k = {length}", draft_length=length)
        return list(await asyncio.gather(*(
            stack_text(self.client, how, self.prompts[(first + index) % len(self.prompts)], self.tokens,
                       ignore_eos=True)
            for index in range(batch))))


def round_figures(samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds of a round behind the first token, and their shares of its wall-clock time; medians over the texts."""
    parts: dict[str, list[float]] = {}
    for sample in samples:
        of = sample.speculation
        assert of is not None, "our own servers tell"
        rounds = of.rounds - 1  # the first one enters the prompt
        verify_s, draft_s = (of.verify_s - sample.first_token_s) / rounds, of.draft_s / rounds
        round_s, wall_s = (of.round_s - sample.first_token_s) / rounds, sample.decode_s / rounds
        rpc_s = of.rpc_s / of.rounds
        for name, part in {
            "wall": wall_s, "draft_calls": draft_s, "verify_calls": verify_s, "workers": draft_s + verify_s - rpc_s,
            "rpc": rpc_s, "scheduling": round_s - draft_s - verify_s, "between": wall_s - round_s,
        }.items():
            parts.setdefault(name, []).append(part)
    seconds = {name: statistics.median(values) for name, values in parts.items()}
    shares = {name: statistics.median(each / wall for each, wall in zip(values, parts["wall"], strict=True))
              for name, values in parts.items()}
    drafted, accepted = (
        sum(getattr(sample.speculation, name) for sample in samples) for name in ("drafted", "accepted"))
    return {"seconds": seconds, "shares": shares, "accepted_share": accepted / drafted if drafted else None}


def _device_usage() -> Callable[[], int]:
    """Bytes in use on the whole GPU, as NVML sees them."""
    from qspec.memory.cuda_runtime import cuda_runtime
    from qspec.memory.device_usage import DeviceUsage

    return DeviceUsage.of(cuda_runtime().device_uuid(0)).used
