"""From samples to figures: what each configuration did, and whether the targets are met. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.memory import ProcessMemory
from benchmarks.prediction import DecodeCosts, acceptance, decode_costs, predict
from benchmarks.samples import Sample, first_difference
from benchmarks.stack_run import AUTO, PLAIN, PLAIN_ALONE, StackRun
from benchmarks.statistics import median_interval, spread
from benchmarks.transformers_run import Reference
from qspec.errors import QspecError

TRANSFORMERS = "transformers fp32"
LEAST_OF_PLAIN = 0.97
LEAST_OF_TRANSFORMERS = 1.5
MOST_RPC_SHARE = 0.05
MOST_FIRST_TOKEN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One target and what was measured."""

    target: str
    met: bool | None
    """None: not measured in this run."""
    measured: str


def configuration_figures(
    run: StackRun, reference: Reference | None, others: Mapping[str, Sequence[Sample]] = {}
) -> dict[str, dict[str, Any]]:
    """Figures of every configuration, transformers' where it ran and ``others`` among them, by name; JSON-able."""
    samples: dict[str, Sequence[Sample]] = {**run.samples, **others}
    if reference is not None:
        samples[TRANSFORMERS] = reference.samples
    prompts = prompts_with_decoding(samples)
    fastest = fastest_plain(run.samples, prompts)
    plain_costs = decode_costs([run.samples[PLAIN.name][index] for index in prompts])
    figures = {}
    for name, found in samples.items():
        decoded = [found[index] for index in prompts]
        rates = [sample.decode_rate for sample in decoded]
        record: dict[str, Any] = {
            "decode_tokens_per_s": {
                **asdict(spread(rates)),
                "total": sum(sample.decode_tokens for sample in decoded) / sum(sample.decode_s for sample in decoded),
                "per_prompt": rates,
            },
            "end_to_end_tokens_per_s": {
                **asdict(spread([sample.end_to_end_rate for sample in found])),
                "total": sum(len(sample.token_ids) for sample in found) / sum(sample.wall_s for sample in found),
            },
            "prefill_s": asdict(spread([sample.first_token_s for sample in found])),
            "tokens": [len(sample.token_ids) for sample in found],
            "text_digests": [sample.digest for sample in found],
            "ratio_to_plain": _ratio(decoded, [samples[fastest][index] for index in prompts]),
        }
        if reference is not None:
            record["ratio_to_transformers"] = _ratio(decoded, [reference.samples[index] for index in prompts])
            record["end_to_end_ratio_to_transformers"] = asdict(median_interval([
                sample.end_to_end_rate / other.end_to_end_rate
                for sample, other in zip(found, reference.samples, strict=True)
            ]))
        if name in run.samples:
            record |= _speculation_figures(found, decoded, plain_costs)
        figures[name] = record
    return figures


def prompts_with_decoding(samples: Mapping[str, Sequence[Sample]]) -> list[int]:
    """Prompts whose text has a second token in every configuration: only these have a decoding speed."""
    count = min(len(found) for found in samples.values())
    usable = [i for i in range(count) if all(found[i].decode_tokens > 0 for found in samples.values())]
    if not usable:
        raise QspecError("--prompts: every text ended after its first token, so there is no decoding to measure")
    return usable


def fastest_plain(samples: Mapping[str, Sequence[Sample]], prompts: Sequence[int]) -> str:
    """The name of the plain decoding that took less time over all prompts: with or without a drafter beside it."""
    return min(
        (PLAIN.name, PLAIN_ALONE.name), key=lambda name: sum(samples[name][index].decode_s for index in prompts))


def differing_prompts(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[int]]:
    """For each configuration the prompts whose text differs from plain decoding in any token; all must be empty."""
    plain = samples[PLAIN.name]
    return {
        name: [index for index, sample in enumerate(found) if sample.token_ids != plain[index].token_ids]
        for name, found in samples.items()
    }


def transformers_agreement(run: StackRun, reference: Reference) -> dict[str, Any]:
    """How far plain decoding and transformers write the same; JSON-able."""
    differences = []
    for index, (ours, theirs) in enumerate(zip(run.samples[PLAIN.name], reference.samples, strict=True)):
        position = first_difference(theirs.token_ids, ours.token_ids)
        if position is not None:
            differences.append({"prompt": index, "position": position, "logit_gap": reference.logit_gaps[index]})
    return {"prompts": len(reference.samples), "equal": len(reference.samples) - len(differences),
            "differences": differences}


def memory_figures(run: StackRun) -> dict[str, Any]:
    """Memory of the stack under test, measured and budgeted, in bytes; JSON-able."""
    budget = [{"owner": line.owner, "name": line.name, "bytes": line.bytes, "shared": line.shared}
              for line in run.info.memory]
    budgeted, resident = sum(line.bytes for line in run.info.memory), _total(run.memory)
    return {"processes": [asdict(process) for process in run.memory], "resident": resident, "budget": budget,
            "budgeted": budgeted, "resident_beyond_budget": resident - budgeted}


def verdicts(
    figures: Mapping[str, Mapping[str, Any]], first_token_s: float, differing: Mapping[str, Sequence[int]]
) -> list[Verdict]:
    """The targets, each with what was measured."""
    auto = figures[AUTO.name]
    plain, rpc = auto["ratio_to_plain"], auto["rpc_share_of_decoding"]
    other = auto.get("ratio_to_transformers")
    different = len({index for found in differing.values() for index in found})
    return [
        Verdict(target=f"auto at least {LEAST_OF_PLAIN}x the fastest plain decoding",
                met=plain["median"] >= LEAST_OF_PLAIN, measured=_interval(plain)),
        Verdict(target=f"auto at least {LEAST_OF_TRANSFORMERS}x transformers fp32",
                met=None if other is None else other["median"] >= LEAST_OF_TRANSFORMERS,
                measured="not measured (--skip-transformers)" if other is None else _interval(other)),
        Verdict(target=f"RPC and waiting at most {MOST_RPC_SHARE:.0%} of a round (auto)",
                met=None if rpc is None else rpc <= MOST_RPC_SHARE,
                measured="texts too short" if rpc is None else f"{rpc:.1%}"),
        Verdict(target=f"first token within {MOST_FIRST_TOKEN_S:g} s of the command, warm cache",
                met=first_token_s <= MOST_FIRST_TOKEN_S, measured=f"{first_token_s:.1f} s"),
        Verdict(target="the same tokens in every configuration", met=different == 0,
                measured=f"{different} of {len(auto['tokens'])} prompts differ"),
    ]


def _ratio(found: Sequence[Sample], base: Sequence[Sample]) -> dict[str, float]:
    """Decoding speed in units of another configuration's: per prompt, then the median."""
    return asdict(median_interval([
        sample.decode_rate / other.decode_rate for sample, other in zip(found, base, strict=True)]))


def _speculation_figures(
    found: Sequence[Sample], decoded: Sequence[Sample], plain: DecodeCosts | None
) -> dict[str, Any]:
    statistics = [sample.speculation for sample in found if sample.speculation is not None]
    drafted, accepted = _per_position(found)
    costs = decode_costs(decoded)
    probability = acceptance(statistics)
    record: dict[str, Any] = {
        "drafted": sum(stats.drafted for stats in statistics),
        "accepted": sum(stats.accepted for stats in statistics),
        "drafted_per_position": drafted,
        "accepted_per_position": accepted,
        "acceptance_given_those_before": probability,
        "rpc_share_of_all_rounds":
            sum(stats.rpc_s for stats in statistics) / sum(stats.round_s for stats in statistics),
        "rpc_share_of_decoding": None, "outside_workers_share_of_decoding": None, "tokens_per_round": None,
        "rounds_per_draft_length": None, "draft_step_s": None, "verify_pass_s": None, "prediction": None,
        "measured_speed_up": None,
    }
    if costs is None or plain is None:  # too short to tell decoding from prefill
        return record
    working_s = costs.draft_s + costs.verify_s - costs.rpc_s
    return record | {
        "rpc_share_of_decoding": costs.rpc_s / costs.decode_s,
        "outside_workers_share_of_decoding": 1 - working_s / costs.decode_s,
        "tokens_per_round": costs.tokens / costs.rounds,
        "rounds_per_draft_length": list(costs.rounds_per_draft_length),
        "draft_step_s": costs.draft_step_s,
        "verify_pass_s": costs.verify_pass_s,
        "prediction": asdict(predict(costs, plain.verify_pass_s, probability)),
        "measured_speed_up": (costs.tokens / costs.decode_s) / (plain.tokens / plain.decode_s),
    }


def _per_position(samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Drafted and accepted tokens by their position in the draft."""
    statistics = [sample.speculation for sample in samples if sample.speculation is not None]
    longest = max((len(stats.drafted_per_position) for stats in statistics), default=0)
    drafted, accepted = [0] * longest, [0] * longest
    for stats in statistics:
        for index, count in enumerate(stats.drafted_per_position):
            drafted[index] += count
        for index, count in enumerate(stats.accepted_per_position):
            accepted[index] += count
    return drafted, accepted


def _total(processes: Sequence[ProcessMemory]) -> int:
    return sum(process.proportional for process in processes)


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"
