"""The load curve from prompts to report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import grpc

from benchmarks.serving.block_log import BURST, BlockLog
from benchmarks.serving.load_curve import LoadPlan, measure_loads, saturation_of
from benchmarks.serving.load_figures import RESAMPLES, compare, differing_texts, load_points
from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.serving.load_plot import plot_loads
from benchmarks.serving.load_report import load_verdicts, render_comparisons, render_points
from benchmarks.serving.section import USED_UP, Section, log_path, stack_settings
from benchmarks.stack_run import AUTO, PLAIN, Configuration, Tell, stack_tokens
from benchmarks.statistics import BOOTSTRAP_SEED, CONFIDENCE
from qspec.client import AsyncClient
from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb

Blocks = dict[str, Sequence[GeneratedLoad]]
"""Of one load: those of each configuration, paired."""


async def measure_load_section(
    client: AsyncClient, channel: grpc.aio.Channel, args: argparse.Namespace, texts: Sequence[str], *,
    deadline: float, tell: Tell,
) -> Section:
    """Measure, or go on measuring, until ``deadline`` of the monotonic clock; and report on all that there is."""
    prompts = [await stack_tokens(client, text, args.prompt_tokens) for text in texts]
    info = await client.server_info()
    configurations = (AUTO, Configuration(name=f"k = {args.draft_length}", draft_length=args.draft_length),
                      Configuration(name="k = 0", draft_length=PLAIN.draft_length))
    plan = LoadPlan(
        loads=tuple(args.loads), blocks=args.blocks, block_s=args.block_seconds, burst=args.burst,
        max_tokens=args.max_tokens, seed=args.seed)
    settings = {
        **stack_settings(args, info), "num_prompts": len(prompts), "prompt_tokens": args.prompt_tokens,
        "sampling": "greedy",
        "configurations": [configuration.name for configuration in configurations],
        **{name: value for name, value in asdict(plan).items() if name not in ("loads", "blocks")},
    }
    log = BlockLog(log_path(args, "load"), settings)
    await _warm_up(channel, configurations, prompts[0], args.max_tokens)
    complete = await measure_loads(channel, plan, configurations, prompts, log, deadline=deadline, tell=tell)
    if not complete:
        tell(USED_UP)
    return report(log, settings, [configuration.name for configuration in configurations], args, complete=complete)


def report(
    log: BlockLog, settings: dict[str, Any], names: Sequence[str], args: argparse.Namespace, *, complete: bool
) -> Section:
    """What the blocks of a log say; writes the plot if there is to be one."""
    blocks = {
        load: found for load in (BURST, *sorted(args.loads)) if (found := paired_blocks(log, load, names)) is not None}
    if BURST not in blocks:
        raise QspecError("--budget: was used up before the saturation was measured; give more seconds")
    saturation = saturation_of(log)
    curve = {load: found for load, found in blocks.items() if load != BURST}
    points = {load: load_points(found) for load, found in curve.items()}
    comparisons = {load: compare(found, AUTO.name) for load, found in curve.items()}
    burst = {name: one.throughput.median for name, one in load_points(blocks[BURST]).items()}
    differing = sum(differing_texts(found) for found in blocks.values())
    requests = sum(len(block.streams) for found in blocks.values() for block in found[AUTO.name])
    if args.plot is not None and points:
        title = (f"{settings['model']}, verifier {settings['verify_method']}, drafter {settings['draft_method']}, "
                 f"Poisson arrivals, prompts of at most {settings['prompt_tokens']} tokens, texts of at most "
                 f"{settings['max_tokens']}, {settings['slots']} slots")
        plot_loads(points, comparisons, saturation, title, args.plot)
    figures = {
        "settings": {
            **settings, "loads": list(args.loads), "blocks": args.blocks,
            "bootstrap": {"seed": BOOTSTRAP_SEED, "resamples": RESAMPLES, "confidence": CONFIDENCE}},
        "complete": complete,
        "saturation_requests_per_s": saturation,
        "burst_tokens_per_s": burst,
        "points": [
            {"load": load, "configuration": name, **asdict(point)}
            for load, found in points.items() for name, point in found.items()],
        "ratios": [{"load": load, **asdict(one)} for load, one in comparisons.items()],
        "differing_texts": differing,
    }
    text = "\n".join([
        f"{settings['model']}, verifier {settings['verify_method']}, drafter {settings['draft_method']}, "
        f"{settings['slots']} slots, greedy, {settings['num_prompts']} prompts of {settings['prompts']} cut to "
        f"{settings['prompt_tokens']} tokens, at most {settings['max_tokens']} tokens each",
        "all at once, tokens/s: " + ", ".join(f"{name} {rate:.1f}" for name, rate in burst.items()),
        render_points(points, saturation), render_comparisons(comparisons),
    ])
    return Section(
        figures=figures, verdicts=load_verdicts(comparisons, differing, requests), differing=differing, text=text)


def paired_blocks(log: BlockLog, load: float, names: Sequence[str]) -> Blocks | None:
    """The blocks of a load that every configuration has served; None when there are none."""
    found = {(key.index, key.configuration): block for key, block in log.blocks.items() if key.load == load}
    whole = [index for index in sorted({index for index, _ in found}) if all((index, name) in found for name in names)]
    return {name: [found[index, name] for index in whole] for name in names} if whole else None


async def _warm_up(
    channel: grpc.aio.Channel, configurations: Sequence[Configuration], prompt: tuple[int, ...], max_tokens: int
) -> None:
    """A text in every configuration: what runs for the first time is slow, and nothing is known of acceptance yet."""
    for configuration in configurations:
        await generate_load(channel, [TimedRequest(0.0, pb.GenerateRequest(
            tokens=pb.TokenPrompt(token_ids=prompt), max_tokens=max_tokens, temperature=0.0,
            draft_length=configuration.draft_length))])
