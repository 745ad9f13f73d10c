"""A scrape: what the server and its engines count, as metrics. Runs in the endpoint's thread and changes nothing.

What a pair of workers and its engine have is labelled with the ``pair``; what becomes of requests is the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.metrics.catalogue import BY_NAME, Kind
from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.metrics.histogram import Histogram
from coordinator.metrics.request_metrics import RequestMetrics
from coordinator.outcome import FAILURES, REFUSALS
from coordinator.pair import Pair
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
    """Reads one server. Every metric of the catalogue is in every scrape, those of labels with their known values."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        pairs = self._serving.pairs
        yield from _server(self._serving, pairs)
        yield from _requests(self._serving.telemetry.requests)
        yield from _texts(pairs)
        yield from _rounds(pairs)
        yield from _speculation(pairs)
        yield from _workers(pairs)


def _server(serving: Serving, pairs: Sequence[Pair]) -> Iterator[Metric]:
    yield _family("qspec_up", [((), serving.state is ServerState.SERVING)])
    yield _family("qspec_stack_info", [((
        pair.name, package_version(), serving.model, pair.verifier.method if pair.verifier else "",
        pair.drafter.method if pair.drafter else "", str(pair.verifier.epoch) if pair.verifier else ""), 1.0)
        for pair in pairs])
    yield _by_pair("qspec_num_requests_running", pairs, lambda pair: pair.engine.running if pair.engine else 0)
    yield _family("qspec_num_requests_waiting", [((), serving.router.waiting if serving.router else 0)])
    yield _by_pair("qspec_max_requests_running", pairs, lambda pair: pair.verifier.max_slots if pair.verifier else 0)
    yield _family("qspec_max_requests_waiting", [((), serving.max_waiting)])


def _requests(requests: RequestMetrics) -> Iterator[Metric]:
    finished = [reason.value for reason in FinishReason]
    yield _family("qspec_requests_refused_total", _by_reason(requests.refused, REFUSALS))
    yield _family("qspec_request_success_total", _by_reason(requests.finished, finished))
    yield _family("qspec_requests_failed_total", _by_reason(requests.failed, FAILURES))
    yield _histogram("qspec_e2e_request_latency_seconds", [((), requests.end_to_end)])


def _texts(pairs: Sequence[Pair]) -> Iterator[Metric]:
    yield _by_pair("qspec_prompt_tokens_total", pairs, lambda pair: _counted(pair).prompt_tokens)
    yield _by_pair("qspec_generation_tokens_total", pairs, lambda pair: _counted(pair).generation_tokens)
    yield _by_pair("qspec_prefill_tokens_total", pairs, lambda pair: _counted(pair).prefill_tokens)
    yield _by_pair("qspec_kv_cache_usage_perc", pairs, _kv_usage)
    yield _by_pair("qspec_kv_cache_blocks", pairs, lambda pair: pair.verifier.num_blocks if pair.verifier else 0)
    yield _by_pair("qspec_prefix_cache_queries_total", pairs, lambda pair: _counted(pair).prefix_queries)
    yield _by_pair("qspec_prefix_cache_hits_total", pairs, lambda pair: _counted(pair).prefix_hits)
    yield _by_pair("qspec_num_preemptions_total", pairs, lambda pair: pair.engine.preemptions if pair.engine else 0)
    yield _histograms("qspec_time_to_first_token_seconds", pairs, lambda metrics: metrics.time_to_first_token)
    yield _histograms("qspec_inter_token_latency_seconds", pairs, lambda metrics: metrics.inter_token)
    yield _histograms("qspec_request_queue_time_seconds", pairs, lambda metrics: metrics.queue_time)
    yield _histograms("qspec_request_prefill_time_seconds", pairs, lambda metrics: metrics.prefill_time)


def _rounds(pairs: Sequence[Pair]) -> Iterator[Metric]:
    yield _histograms("qspec_round_time_seconds", pairs, lambda metrics: metrics.round_time)
    yield _histograms("qspec_draft_time_seconds", pairs, lambda metrics: metrics.draft_time)
    yield _histograms("qspec_verify_time_seconds", pairs, lambda metrics: metrics.verify_time)
    yield _histogram("qspec_rpc_time_seconds", [
        ((pair.name, worker), each) for pair in pairs for worker, each in _counted(pair).rpc_time.items()])
    yield _family("qspec_worker_stage_seconds_total", [
        ((pair.name, worker, stage), nanoseconds * 1e-9)
        for pair in pairs
        for worker, each in _counted(pair).stages.items()
        for stage, nanoseconds in (
            ("prepare", each.prepare_ns), ("forward", each.forward_ns), ("sample", each.sample_ns))])


def _speculation(pairs: Sequence[Pair]) -> Iterator[Metric]:
    rounds = {pair.name: _counted(pair).rounds_by_draft_length(_longest_draft(pair)) for pair in pairs}
    stood = {pair.name: _counted(pair).accepted_per_position(_longest_draft(pair)) for pair in pairs}
    drafted = {name: sum(length * count for length, count in enumerate(each)) for name, each in rounds.items()}
    yield _by_pair("qspec_spec_decode_num_drafts_total", pairs, lambda pair: sum(rounds[pair.name][1:]))
    yield _by_pair("qspec_spec_decode_num_draft_tokens_total", pairs, lambda pair: drafted[pair.name])
    yield _by_pair("qspec_spec_decode_num_accepted_tokens_total", pairs, lambda pair: sum(stood[pair.name]))
    yield _family("qspec_spec_decode_num_accepted_tokens_per_pos_total", [
        ((name, str(position)), count) for name, each in stood.items() for position, count in enumerate(each)])
    spec = BY_NAME["qspec_spec_decode_draft_length"]
    lengths = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    for name, each in rounds.items():
        cumulative = [(f"{length}.0", float(sum(each[: length + 1]))) for length in range(len(each))]
        lengths.add_metric([name], [*cumulative, ("+Inf", float(sum(each)))], drafted[name])
    yield lengths
    yield _by_pair("qspec_spec_decode_seconds_total", pairs, lambda pair: _counted(pair).plain.actual_s)
    yield _by_pair("qspec_spec_decode_plain_seconds_total", pairs, lambda pair: _counted(pair).plain.plain_s)
    yield _by_pair("qspec_spec_decode_estimated_speedup", pairs, lambda pair: _counted(pair).plain.speedup)


def _workers(pairs: Sequence[Pair]) -> Iterator[Metric]:
    yield _family("qspec_worker_restarts_total", [
        ((pair.name, worker), restarts) for pair in pairs
        for worker, restarts in (("verifier", pair.verifier_restarts), ("drafter", pair.drafter_restarts))])
    yield _family("qspec_worker_attached", [
        ((pair.name, worker), attached) for pair in pairs
        for worker, attached in (
            ("verifier", pair.engine is not None and pair.engine.verifier_attached),
            ("drafter", pair.drafter is not None))])
    yield _by_pair("qspec_epochs_total", pairs, lambda pair: pair.epochs)
    yield _family("qspec_memory_bytes", [sample for pair in pairs for sample in _memory(pair)])


def _counted(pair: Pair) -> EngineMetrics:
    """What its engine counted; nothing before there is one."""
    return EngineMetrics() if pair.engine is None else pair.engine.metrics


def _longest_draft(pair: Pair) -> int:
    return pair.verifier.max_draft_length if pair.verifier is not None else 0


def _kv_usage(pair: Pair) -> float:
    if pair.verifier is None or pair.engine is None:
        return 0.0
    return (pair.verifier.num_blocks - pair.engine.free_blocks) / pair.verifier.num_blocks


def _memory(pair: Pair) -> Samples:
    """The budget by owner; items of one name are one."""
    sizes: dict[tuple[str, ...], float] = {}
    on_gpu = pair.verifier is not None and pair.verifier.arena.backend is ArenaBackend.CUDA_IPC
    lines = budget_lines("verifier", pair.verifier.memory) if pair.verifier else []
    lines += budget_lines("drafter", pair.drafter.memory) if pair.drafter else []
    for line in lines:
        gpu = on_gpu and HOST_MEMORY not in line.name
        mapped = str(line.mapped_file and not gpu).lower()
        key = (pair.name, line.owner, line.name, "gpu" if gpu else "host", mapped)
        sizes[key] = sizes.get(key, 0.0) + line.bytes
    return sizes.items()


def _by_reason(counts: Mapping[str, int], known: Iterable[str]) -> Samples:
    """Counts with the reasons that have none yet: a series that is not there has no rate when it comes."""
    return [((reason,), count) for reason, count in (dict.fromkeys(known, 0) | dict(counts)).items()]


def _by_pair(name: str, pairs: Sequence[Pair], value: Callable[[Pair], float]) -> Metric:
    return _family(name, [((pair.name,), value(pair)) for pair in pairs])


def _family(name: str, samples: Samples) -> Metric:
    spec = BY_NAME[name]
    kind = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        family.add_metric(list(labels), float(value))
    return family


def _histograms(name: str, pairs: Sequence[Pair], histogram: Callable[[EngineMetrics], Histogram]) -> Metric:
    return _histogram(name, [((pair.name,), histogram(_counted(pair))) for pair in pairs])


def _histogram(name: str, histograms: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
    spec = BY_NAME[name]
    family = HistogramMetricFamily(name, spec.help, labels=spec.labels)
    for labels, each in histograms:
        family.add_metric(list(labels), each.buckets(), each.sum)
    return family
