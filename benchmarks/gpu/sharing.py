"""What two processes pay for sharing a GPU: memory, turns, and the order of their kernels.

``python -m benchmarks.gpu --section sharing``: a cell for each of these, a minute and a half in all on an H200.

handle     allocating an arena of 8 GB and opening its handle; both processes write, both read
budget     the table that a start prints, against the change of the whole device as NVML reports it
survivor   the importer goes on after the exporter's SIGKILL; what the dead arena's handle says to a third process
turns      kernels of 32 MB and 512 MB by turns: one process twice, and two, without and with MPS
ordering   a chain of kernels across two processes, ordered by the hosts or by interprocess events
streaming  encoding weights into the arena on the way: GB/s of fp32, and whether the bits are a CPU's
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import torch

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.descriptor_json import specs_to_json
from benchmarks.gpu.peer import Peer, PeerRefused, peers, take_turns
from benchmarks.gpu.results_file import Section
from benchmarks.statistics import spread
from coordinator.mps import BINARY, TURN_TAKING, MpsDaemon
from qspec.engine.device_weights import stream_weights
from qspec.engine.weights import WeightRegion
from qspec.interfaces import RegionWriter
from qspec.memory.budget import BudgetLine, budget_table
from qspec.memory.cuda_arena import CudaArena
from qspec.memory.cuda_runtime import cuda_runtime
from qspec.memory.device_usage import DeviceUsage
from qspec.memory.layout import RegionSpec
from qspec.quant.codecs import CODECS

Figures = dict[str, Any]
ARENA_BYTES = 8 << 30
SPECS = [
    RegionSpec("kv", torch.uint8, (ARENA_BYTES,)),
    RegionSpec("state", torch.int64, (64,)),
    RegionSpec("tail", torch.float32, (8 << 20,), RegionWriter.DRAFTER),
]
ROUNDS, REPEATS = 100, 5
SIZES_MB = (32, 512)


@contextmanager
def mps() -> Iterator[dict[str, str] | None]:
    """The environment of clients of a daemon of one's own; None where there is no binary."""
    binary = which(BINARY)
    if binary is None:
        print(f"  {BINARY} is not installed")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="qspec-mps-") as directory:
        daemon = MpsDaemon(binary, Path(directory) / "mps")
        try:
            yield daemon.wait_ready()
        finally:
            daemon.close()


def create(peer: Peer, epoch: int = 1, budget: list[BudgetLine] | None = None, specs: Any = None) -> Figures:
    """An arena of ``SPECS``, or of others."""
    lines = [[line.owner, line.name, line.bytes, line.shared] for line in budget or []]
    return peer.ask("create", specs=specs or specs_to_json(SPECS), epoch=epoch, budget=lines)


def measure_handle() -> Figures:
    """Both ways through one handle."""
    with peers() as (verifier, drafter):
        made = create(verifier)
        opened = drafter.ask("open", descriptor=made["descriptor"])
        verifier.ask("fill", region="kv", value=7)
        seen = drafter.ask("read", region="kv")
        drafter.ask("fill", region="tail", value=2.5)
        seen_back = verifier.ask("read", region="tail")
    shared = (seen, seen_back) == ({"least": 7.0, "most": 7.0}, {"least": 2.5, "most": 2.5})
    print(f"  allocating and zeroing {ARENA_BYTES / 1e9:.1f} GB {made['ms']:8.2f} ms")
    print(f"  opening the handle                {opened['ms']:8.2f} ms")
    print(f"  the same memory both ways         {shared!s:>8}")
    return {"create_ms": made["ms"], "open_ms": opened["ms"], "shared": shared}


def measure_budget() -> Figures:
    """The table against NVML."""
    usage = DeviceUsage.of(cuda_runtime().device_uuid(0))
    before = usage.used()
    with tempfile.TemporaryDirectory() as directory, peers() as (verifier, drafter):
        contexts = {
            owner: peer.ask("context", lock=f"{directory}/lock")
            for owner, peer in (("verifier", verifier), ("drafter", drafter))
        }
        budget = [
            BudgetLine("arena", spec.name, spec.bytes, shared=True) for spec in SPECS
        ] + [BudgetLine(owner, item["name"], item["bytes"], shared=False) for owner, item in contexts.items()]
        drafter.ask("open", descriptor=create(verifier, budget=budget[: len(SPECS)])["descriptor"])
        verifier.ask("fill", region="kv", value=1)
        drafter.ask("fill", region="tail", value=1.0)
        change = usage.used() - before
    printed = sum(line.bytes for line in budget)
    print(budget_table(budget))
    print(f"  NVML: {change / 1e9:.2f} GB more in use on the whole device, {printed / change - 1:+.2%}")
    return {"printed_bytes": printed, "nvml_bytes": change, "difference": printed / change - 1, "contexts": contexts}


def measure_survivor() -> Figures:
    """A dead exporter."""
    with Peer() as verifier, Peer() as drafter, Peer() as third:
        descriptor = create(verifier)["descriptor"]
        drafter.ask("open", descriptor=descriptor)
        verifier.ask("fill", region="kv", value=3)
        verifier.kill()
        drafter.ask("fill", region="tail", value=1.5)
        goes_on = [drafter.ask("read", region=name) for name in ("kv", "tail")] == [
            {"least": 3.0, "most": 3.0}, {"least": 1.5, "most": 1.5}]
        refusals = {}
        for when in ("while it is mapped", "when nobody maps it"):
            try:
                third.ask("open", descriptor=descriptor)
                refusals[when] = "opened"
            except PeerRefused as refusal:
                refusals[when] = str(refusal)
            drafter.ask("close") if when == "while it is mapped" else None
    print(f"  the importer reads and writes on: {goes_on}")
    for when, said in refusals.items():
        print(f"  the dead arena's handle, {when}: {said}")
    return {"goes_on": goes_on, "handle": refusals}


def measure_turns() -> Figures:
    """Taking turns."""
    print(f"  microseconds a round of two kernels, median of {REPEATS} x {ROUNDS} rounds [quartiles]")
    figures: Figures = {"rounds": ROUNDS, "repeats": REPEATS}

    def measure(label: str, environment: dict[str, str] | None) -> None:
        with peers(environment) as (first, second):
            for size in SIZES_MB:
                for name, works in (("one process twice", (2, 0)), ("two processes", (1, 1))):
                    times = take_turns(
                        first, second, "turns", rounds=ROUNDS, repeats=REPEATS, megabytes=size,
                        first_works=works[0], second_works=works[1])
                    figures[f"{label}, {size} MB, {name}"] = times
                    print(f"  {label:8} {size:4} MB  {name:18} {_spread(times)}", flush=True)

    measure("no MPS", None)
    with mps() as environment:
        if environment is not None:
            measure("MPS", environment)
    for label in ("no MPS", "MPS"):
        for size in SIZES_MB:
            if (two := figures.get(f"{label}, {size} MB, two processes")) is not None:
                once = figures[f"{label}, {size} MB, one process twice"]
                cost = (spread(two).median - spread(once).median) / 2
                figures[f"{label}, {size} MB, change of turns"] = cost
                print(f"  {label:8} {size:4} MB  a change of turns  {cost:8.1f}")
    print(f"  what the supervisor says without MPS: {TURN_TAKING}")
    return figures


def measure_ordering() -> Figures:
    """Hosts against events."""
    specs = [["chain", "float32", [8 << 20], "verifier"]]
    figures: Figures = {"rounds": ROUNDS, "repeats": REPEATS}
    print("  microseconds a round of two kernels of 32 MB on shared memory, the second after the first")

    def measure(label: str, environment: dict[str, str] | None) -> None:
        with peers(environment) as (first, second):
            second.ask("open", descriptor=create(first, specs=specs)["descriptor"])
            handles = [peer.ask("export_event")["handle"] for peer in (first, second)]
            first.ask("import_event", handle=handles[1])
            second.ask("import_event", handle=handles[0])
            for name, by_events in (("hosts", False), ("events", True)):
                first.ask("fill", region="chain", value=0.0)
                times = take_turns(
                    first, second, "ordered", region="chain", rounds=ROUNDS, repeats=REPEATS, by_events=by_events)
                chain = first.ask("read", region="chain")
                expected = 2.0 * (ROUNDS * REPEATS + 20)
                right = chain == {"least": expected, "most": expected}
                figures[f"{label}, {name}"] = {"us": times, "in_order": right}
                print(f"  {label:8} {name:8} {_spread(times)}  no addition lost: {right}", flush=True)

    measure("no MPS", None)
    with mps() as environment:
        if environment is not None:
            measure("MPS", environment)
    return figures


class _Random:
    """One layer of a widened SmolLM2, as a source of weights in host memory."""

    def __init__(self, inputs: int, outputs: int) -> None:
        source = torch.Generator().manual_seed(0)
        self.tensors = {"mlp_in": torch.randn(inputs, outputs, generator=source).mul_(0.05)}
        self.tensors["mlp_in"][:, 3] *= 100

    def is_stored(self, name: str, weights_format: str) -> bool:
        return False

    def parts(self, name: str, weights_format: str) -> dict[str, torch.Tensor]:
        return CODECS[weights_format].encode(self.tensors[name].t(), name)


def measure_streaming() -> Figures:
    """Planes on the way to the GPU."""
    inputs, outputs = 4032, 21504
    source, figures = _Random(inputs, outputs), Figures()
    expected = CODECS["fp16-planes"].encode(source.tensors["mlp_in"].t(), "mlp_in")
    for weights in ("fp16-planes", "e4m3-plane"):
        shapes = CODECS[weights].shapes(outputs, inputs, "mlp_in")
        wanted = [
            WeightRegion(RegionSpec(f"w/{part}", dtype, shape), "mlp_in", weights, part)
            for part, (dtype, shape) in shapes.items()
        ]
        arena = CudaArena.create([region.spec for region in wanted], epoch=1, fingerprint="f")
        times = []
        for _ in range(4):  # the first one warms up
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            stream_weights(arena, wanted, source, lambda text, share: None)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        equal = all(
            torch.equal(arena.tensor(f"w/{part}").cpu().view(torch.uint8), expected[part].view(torch.uint8))
            for part in shapes
        )
        rate = inputs * outputs * 4 / min(times[1:]) / 1e9
        peak = torch.cuda.max_memory_allocated()
        figures[weights] = {"gb_per_s": rate, "equal": equal, "transient_bytes": peak}
        print(f"  {weights:12} {rate:6.2f} GB/s of fp32, {peak / 1e6:.0f} MB for a moment, a CPU's bits: {equal}")
        arena.close()
    return figures


SECTIONS: dict[str, Callable[[], Figures]] = {
    "handle": measure_handle, "budget": measure_budget, "survivor": measure_survivor, "turns": measure_turns,
    "ordering": measure_ordering, "streaming": measure_streaming,
}


def sharing(section: Section, _run: BenchRun) -> None:
    """Measure what ``section`` lacks: a cell for each of ``SECTIONS``."""
    for name, measure in SECTIONS.items():
        section.tell(f"{name}: {measure.__doc__}")
        section.measure(name, measure)


def _spread(times: list[float]) -> str:
    figures = spread(times)
    return f"{figures.median:8.1f} [{figures.lower_quartile:.1f}, {figures.upper_quartile:.1f}]"
