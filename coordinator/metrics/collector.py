"""A scrape: what the stack and its engine count, as metrics. Runs in the endpoint's thread and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.metrics.catalogue import BY_NAME, Kind, MetricSpec
from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.metrics.histogram import Histogram
from coordinator.outcome import FAILURES, REFUSALS
from coordinator.serving import ServerState, Serving
from coordinator.version import package_version
from qspec.interfaces import ArenaBackend
from qspec.memory.budget import budget_lines
from qspec.sequence import FinishReason

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values of the labels, and the metric's."""
HOST_MEMORY = "(host memory)"
"""In the name of what a stack on a GPU keeps in the host's memory."""


class StackCollector(Collector):
    """Reads one stack. Every metric of the catalogue is in every scrape, those of labels with their known values."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        yield from self._server()
        yield from self._requests(self._serving.telemetry.metrics)
        yield from _rounds(self._serving.telemetry.metrics)
        longest = self._serving.verifier.max_draft_length if self._serving.verifier is not None else 0
        yield from _speculation(self._serving.telemetry.metrics, longest)
        yield from self._workers()

    def _server(self) -> Iterator[Metric]:
        serving, engine, verifier = self._serving, self._serving.engine, self._serving.verifier
        yield _one("qspec_up", serving.state is ServerState.SERVING)
        drafter = serving.drafter
        labels = (
            package_version(), serving.model, verifier.method if verifier else "", drafter.method if drafter else "",
            str(verifier.epoch) if verifier else "")
        yield _family("qspec_stack_info", [(labels, 1.0)])
        yield _one("qspec_num_requests_running", engine.running if engine else 0)
        yield _one("qspec_num_requests_waiting", engine.waiting if engine else 0)
        yield _one("qspec_max_requests_running", verifier.max_slots if verifier else 0)
        yield _one("qspec_max_requests_waiting", serving.max_waiting)
        blocks = verifier.num_blocks if verifier else 0
        used = blocks - engine.free_blocks if engine and blocks else 0
        yield _one("qspec_kv_cache_usage_perc", used / blocks if blocks else 0.0)
        yield _one("qspec_kv_cache_blocks", blocks)
        yield _one("qspec_num_preemptions_total", engine.preemptions if engine else 0)

    def _requests(self, metrics: EngineMetrics) -> Iterator[Metric]:
        finished = [reason.value for reason in FinishReason]
        yield _family("qspec_requests_refused_total", _by_reason(metrics.refused, REFUSALS))
        yield _family("qspec_request_success_total", _by_reason(metrics.finished, finished))
        yield _family("qspec_requests_failed_total", _by_reason(metrics.failed, FAILURES))
        yield _one("qspec_prompt_tokens_total", metrics.prompt_tokens)
        yield _one("qspec_generation_tokens_total", metrics.generation_tokens)
        yield _one("qspec_prefill_tokens_total", metrics.prefill_tokens)
        yield _histogram("qspec_time_to_first_token_seconds", {(): metrics.time_to_first_token})
        yield _histogram("qspec_inter_token_latency_seconds", {(): metrics.inter_token})
        yield _histogram("qspec_e2e_request_latency_seconds", {(): metrics.end_to_end})
        yield _histogram("qspec_request_queue_time_seconds", {(): metrics.queue_time})
        yield _histogram("qspec_request_prefill_time_seconds", {(): metrics.prefill_time})

    def _workers(self) -> Iterator[Metric]:
        serving, engine = self._serving, self._serving.engine
        yield _family("qspec_worker_restarts_total", [
            (("verifier",), serving.verifier_restarts), (("drafter",), serving.drafter_restarts)])
        yield _family("qspec_worker_attached", [
            (("verifier",), float(engine is not None and engine.verifier_attached)),
            (("drafter",), float(serving.drafter is not None))])
        yield _one("qspec_epochs_total", serving.epochs)
        yield _family("qspec_memory_bytes", _memory(serving))


def _rounds(metrics: EngineMetrics) -> Iterator[Metric]:
    yield _histogram("qspec_round_time_seconds", {(): metrics.round_time})
    yield _histogram("qspec_draft_time_seconds", {(): metrics.draft_time})
    yield _histogram("qspec_verify_time_seconds", {(): metrics.verify_time})
    yield _histogram("qspec_rpc_time_seconds", {(worker,): each for worker, each in metrics.rpc_time.items()})
    yield _family("qspec_worker_stage_seconds_total", [
        ((worker, stage), nanoseconds * 1e-9)
        for worker, each in metrics.stages.items()
        for stage, nanoseconds in (
            ("prepare", each.prepare_ns), ("forward", each.forward_ns), ("sample", each.sample_ns))])


def _speculation(metrics: EngineMetrics, longest: int) -> Iterator[Metric]:
    rounds, accepted = metrics.rounds_by_draft_length(longest), metrics.accepted_per_position(longest)
    drafted = sum(length * count for length, count in enumerate(rounds))
    yield _one("qspec_spec_decode_num_drafts_total", sum(rounds[1:]))
    yield _one("qspec_spec_decode_num_draft_tokens_total", drafted)
    yield _one("qspec_spec_decode_num_accepted_tokens_total", sum(accepted))
    yield _family("qspec_spec_decode_num_accepted_tokens_per_pos_total", [
        ((str(position),), count) for position, count in enumerate(accepted)])
    lengths = HistogramMetricFamily("qspec_spec_decode_draft_length", BY_NAME["qspec_spec_decode_draft_length"].help)
    cumulative = [(f"{length}.0", float(sum(rounds[: length + 1]))) for length in range(len(rounds))]
    lengths.add_metric([], [*cumulative, ("+Inf", float(sum(rounds)))], drafted)
    yield lengths
    yield _one("qspec_spec_decode_seconds_total", metrics.plain.actual_s)
    yield _one("qspec_spec_decode_plain_seconds_total", metrics.plain.plain_s)
    yield _one("qspec_spec_decode_estimated_speedup", metrics.plain.speedup)


def _memory(serving: Serving) -> Samples:
    """The budget by owner; items of one name are one."""
    verifier, drafter, sizes = serving.verifier, serving.drafter, dict[tuple[str, ...], float]()
    on_gpu = verifier is not None and verifier.arena.backend is ArenaBackend.CUDA_IPC
    lines = budget_lines("verifier", verifier.memory) if verifier else []
    lines += budget_lines("drafter", drafter.memory) if drafter else []
    for line in lines:
        gpu = on_gpu and HOST_MEMORY not in line.name
        key = (line.owner, line.name, "gpu" if gpu else "host", str(line.mapped_file and not gpu).lower())
        sizes[key] = sizes.get(key, 0.0) + line.bytes
    return sizes.items()


def _by_reason(counts: Mapping[str, int], known: Iterable[str]) -> Samples:
    """Counts with the reasons that have none yet: a series that is not there has no rate when it comes."""
    return [((reason,), count) for reason, count in (dict.fromkeys(known, 0) | dict(counts)).items()]


def _one(name: str, value: float) -> Metric:
    return _family(name, [((), float(value))])


def _family(name: str, samples: Samples) -> Metric:
    spec = BY_NAME[name]
    family = _empty_family(spec)
    for labels, value in samples:
        family.add_metric(list(labels), float(value))
    return family


def _empty_family(spec: MetricSpec) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    return kind(spec.name, spec.help, labels=spec.labels)


def _histogram(name: str, histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
    spec = BY_NAME[name]
    family = HistogramMetricFamily(name, spec.help, labels=spec.labels)
    for labels, histogram in histograms.items():
        family.add_metric(list(labels), histogram.buckets(), histogram.sum)
    return family
