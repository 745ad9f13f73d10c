"""Every metric that the endpoint has: its name, its meaning, and whether users of vLLM know it.

Where vLLM has the like, the name is its own behind ``qspec_`` instead of ``vllm:``: Prometheus keeps colons for
recording rules, and Kubernetes' metrics interfaces do not take them. ``docs/metrics.md`` has the same list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    """Types of the exposition format; the value is what ``# TYPE`` says."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric; ``name`` is what queries say, for a histogram without its suffixes."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    like_vllm: bool = False
    """Whether vLLM has one of the same name and meaning."""


def _spec(kind: Kind, name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name=f"qspec_{name}", kind=kind, help=text, labels=labels)


def _like(kind: Kind, name: str, text: str, *labels: str) -> MetricSpec:
    """One that vLLM has, too."""
    return replace(_spec(kind, name, text, *labels), like_vllm=True)


PAIR = "pair"
"""The label of what a pair of workers and its engine have of their own."""
_WHAT_RUNS = ("version", "model", "verify_method", "draft_method", "epoch")
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS: tuple[MetricSpec, ...] = (
    _spec(_G, "up", "1 while requests are served, 0 while the server loads or drains"),
    _spec(_G, "stack_info", "1; labels say what runs", PAIR, *_WHAT_RUNS),
    _like(_G, "num_requests_running", "Texts that have a slot", PAIR),
    _like(_G, "num_requests_waiting", "Texts that wait for a slot"),
    _spec(_G, "max_requests_running", "Slots", PAIR),
    _spec(_G, "max_requests_waiting", "Texts that may wait"),
    _spec(_C, "requests_refused_total", "Requests that were not let in", "reason"),
    _like(_C, "request_success_total", "Texts that came to their end", "finished_reason"),
    _spec(_C, "requests_failed_total", "Texts that were let in and did not come to their end", "reason"),
    _like(_C, "prompt_tokens_total", "Prompt tokens of texts that were begun", PAIR),
    _like(_C, "generation_tokens_total", "Tokens that were made", PAIR),
    _spec(_C, "prefill_tokens_total", "Tokens entered into the KV cache, those entered again included", PAIR),
    _like(_G, "kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1", PAIR),
    _spec(_G, "kv_cache_blocks", "KV blocks", PAIR),
    _like(_C, "prefix_cache_queries_total", "Prompt tokens looked for in the KV cache", PAIR),
    _like(_C, "prefix_cache_hits_total", "Prompt tokens found there", PAIR),
    _like(_C, "num_preemptions_total", "Texts that gave way because KV blocks ran out", PAIR),
    _like(_H, "time_to_first_token_seconds", "From a text's being queued to its first token", PAIR),
    _like(_H, "inter_token_latency_seconds", "From one round's tokens to the next ones', shared among those", PAIR),
    _like(_H, "e2e_request_latency_seconds", "From a text's being queued to its end"),
    _like(_H, "request_queue_time_seconds", "From a text's being queued to its slot", PAIR),
    _like(_H, "request_prefill_time_seconds", "From a text's slot to its first token", PAIR),
    _spec(_H, "round_time_seconds", "Rounds, from the choice of draft lengths to the commit", PAIR),
    _spec(_H, "draft_time_seconds", "Draft calls as far as the verifier waited for them, RPC included", PAIR),
    _spec(_H, "verify_time_seconds", "Verify calls, RPC included", PAIR),
    _spec(_H, "rpc_time_seconds", "What a call takes besides the worker's own time", PAIR, "worker"),
    _spec(_C, "worker_stage_seconds_total", "A worker's own time: prepare, forward, sample", PAIR, "worker", "stage"),
    _like(_C, "spec_decode_num_drafts_total", "Drafts: rounds of one text with at least one drafted token", PAIR),
    _like(_C, "spec_decode_num_draft_tokens_total", "Drafted tokens", PAIR),
    _like(_C, "spec_decode_num_accepted_tokens_total", "Drafted tokens that stood", PAIR),
    _like(_C, "spec_decode_num_accepted_tokens_per_pos_total", "Drafts that stood, by position", PAIR, "position"),
    _spec(_H, "spec_decode_draft_length", "Tokens drafted for one text in one round; 0 is plain decoding", PAIR),
    _spec(_C, "spec_decode_seconds_total", "Time of rounds without prefill", PAIR),
    _spec(_C, "spec_decode_plain_seconds_total", "What their tokens would have taken without drafts, estimated", PAIR),
    _spec(_G, "spec_decode_estimated_speedup", "The quotient of the two over the last hundred rounds or so", PAIR),
    _spec(_C, "worker_restarts_total", "Replacements of a worker that was lost", PAIR, "worker"),
    _spec(_G, "worker_attached", "1 while the engine works with this worker", PAIR, "worker"),
    _spec(_C, "epochs_total", "Arenas attached; more than 1 means that verifiers were lost", PAIR),
    _spec(_G, "memory_bytes", "The memory budget, on host and gpu", PAIR, "owner", "purpose", "device", "mapped_file"),
)

BY_NAME = {spec.name: spec for spec in METRICS}
EXPOSED_SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.COUNTER: ("",), Kind.GAUGE: ("",)}


def series_names() -> set[str]:
    """Every name that a query may use."""
    return {spec.name + suffix for spec in METRICS for suffix in EXPOSED_SUFFIXES[spec.kind]}
