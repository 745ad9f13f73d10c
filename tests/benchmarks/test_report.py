"""Figures and verdicts from made-up samples."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bandwidth import Floor, weight_bytes
from benchmarks.report import (
    TRANSFORMERS,
    configuration_figures,
    differing_prompts,
    least_gain,
    memory_figures,
    prompts_with_decoding,
    stream_figures,
    transformers_agreement,
    verdicts,
)
from benchmarks.samples import Sample, first_difference
from benchmarks.stack_run import AUTO, CONFIGURATIONS, PLAIN, PLAIN_ALONE, StackRun, common_end
from benchmarks.stream_run import StreamRun
from benchmarks.table import render
from benchmarks.transformers_run import Reference
from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb
from tests.benchmarks.texts import plain_sample, speculative_sample

TEXTS = (tuple(range(100, 117)), tuple(range(200, 217)))


def made_up_run(**changes: tuple[Sample, ...]) -> StackRun:
    """Two prompts; plain decoding without a drafter is the faster one, k = 4 in all others."""
    samples = {
        configuration.name: tuple(speculative_sample(text, (4, 4, 1, 3), draft_length=4) for text in TEXTS)
        for configuration in CONFIGURATIONS
    }
    samples[PLAIN.name] = tuple(plain_sample(text) for text in TEXTS)
    samples[PLAIN_ALONE.name] = tuple(plain_sample(text, step_s=0.08) for text in TEXTS)
    weights = pb.MemoryLine(owner="arena", name="weights fp16-planes", bytes=1 << 20, shared=True)
    info = pb.GetServerInfoResponse(memory=[weights])
    return StackRun(prompts=((1, 2), (3, 4)), samples={**samples, **changes}, info=info, streams=(), memory=())


FLOOR = Floor(bytes_per_s=14.0 * (1 << 20), weight_bytes=1 << 20)
"""14 tokens per second; plain decoding without a drafter makes 12.5."""


def streams(count: int, *, plain: float, auto: float) -> StreamRun:
    """Texts at once, at these rates of all together."""
    rates = {PLAIN.name: (plain,) * 3, AUTO.name: (auto,) * 3}
    return StreamRun(streams=count, rates=rates, differing=dict.fromkeys(rates, 0))


def reference(*texts: tuple[int, ...], step_s: float = 0.2) -> Reference:
    """transformers, at half the speed of plain decoding."""
    samples = tuple(replace(plain_sample(text, step_s=step_s), speculation=None) for text in texts)
    return Reference(samples=samples, logit_gaps=(0.25,) * len(texts), load_s=1.0)


def test_ratios_are_to_the_fastest_plain_decoding() -> None:
    figures = configuration_figures(made_up_run(), reference(*TEXTS))
    assert figures[PLAIN_ALONE.name]["ratio_to_plain"]["median"] == pytest.approx(1.0)
    assert figures[PLAIN.name]["ratio_to_plain"]["median"] == pytest.approx(0.8)
    decoded_s = 4 * (4 * 0.02 + 0.12)
    assert figures[AUTO.name]["ratio_to_plain"]["median"] == pytest.approx(16 * 0.08 / decoded_s)
    assert figures[AUTO.name]["ratio_to_transformers"]["median"] == pytest.approx(16 * 0.2 / decoded_s)
    assert figures[TRANSFORMERS]["ratio_to_transformers"]["median"] == pytest.approx(1.0)
    assert figures[AUTO.name]["measured_speed_up"] == pytest.approx(16 * 0.1 / decoded_s)
    assert figures[AUTO.name]["drafted_per_position"] == [8, 8, 8, 8]
    assert figures[AUTO.name]["accepted_per_position"] == [8, 6, 6, 4]
    assert figures[AUTO.name]["tokens_per_round"] == pytest.approx(4.0)


def verdicts_of(run: StackRun, other: Reference | None, first_token_s: float = 3.0) -> list[bool | None]:
    """The verdicts alone."""
    figures = configuration_figures(run, other)
    together = [stream_figures(each) for each in run.streams]
    found = verdicts(figures, first_token_s, differing_prompts(run.samples), 1.15, FLOOR, together)
    return [verdict.met for verdict in found]


def test_targets_that_are_met() -> None:
    run = replace(made_up_run(), streams=(streams(4, plain=10.0, auto=9.9), streams(16, plain=10.0, auto=12.0)))
    fast = replace(reference(*TEXTS), samples=reference(*TEXTS, step_s=0.9).samples)
    assert verdicts_of(run, fast) == [True] * 8


def test_targets_that_are_missed() -> None:
    slow = tuple(plain_sample(text, step_s=0.19) for text in TEXTS)
    slow = tuple(
        replace(sample, speculation=replace(sample.speculation, rpc_s=sample.decode_s / 10))  # type: ignore[type-var]
        for sample in slow)
    different = (slow[0], replace(slow[1], token_ids=(*TEXTS[1][:-1], 7)))
    changes = {"auto": different, PLAIN_ALONE.name: slow}
    run = replace(made_up_run(**changes), streams=(streams(4, plain=10.0, auto=9.7),))
    assert verdicts_of(run, reference(*TEXTS), 10.1) == [False] * 7


def test_what_was_skipped_is_neither_met_nor_missed() -> None:
    assert verdicts_of(made_up_run(), None) == [True, True, None, True, True, True]
    figures = configuration_figures(made_up_run(), None)
    (floor,) = [found for found in verdicts(figures, 3.0, {}, 1.15, None, []) if "reading the weights" in found.target]
    assert (floor.met, floor.measured) == (None, "not measured (no native kernels)")


def test_the_gain_asked_for_is_the_verifiers() -> None:
    assert (least_gain("none (fp32)"), least_gain("none (fp16)"), least_gain("int4 (g64)")) == (1.6, 1.15, 0.98)


def test_the_floor_is_the_weights_over_the_bandwidth() -> None:
    assert weight_bytes(made_up_run().info.memory) == 1 << 20
    figures = configuration_figures(made_up_run(), None)
    found = verdicts(figures, 3.0, {}, 1.15, FLOOR, [])
    (verdict,) = [each for each in found if "reading the weights" in each.target]
    assert verdict.measured == "89% (12.5 of 14.0 tok/s: 1 MB at 0.0 GB/s)"


def test_streams_are_compared_repeat_by_repeat() -> None:
    found = stream_figures(StreamRun(
        streams=4, rates={PLAIN.name: (10.0, 20.0, 10.0), AUTO.name: (11.0, 22.0, 30.0)}, differing={AUTO.name: 1}))
    assert found["ratio_to_plain"]["median"] == pytest.approx(1.1)
    assert found["tokens_per_s"][AUTO.name]["median"] == 22.0
    assert found["differing_texts"] == {AUTO.name: 1}


def test_differing_texts_are_counted_by_configuration() -> None:
    shorter = (plain_sample(TEXTS[0]), plain_sample(TEXTS[1][:-1]))
    found = differing_prompts(made_up_run(**{PLAIN_ALONE.name: shorter}).samples)
    assert found[PLAIN_ALONE.name] == [1]
    assert not any(indices for name, indices in found.items() if name != PLAIN_ALONE.name)


def test_agreement_with_transformers_names_the_first_difference() -> None:
    other = (*TEXTS[1][:5], 7, *TEXTS[1][6:])
    found = transformers_agreement(made_up_run(), reference(TEXTS[0], other))
    assert found == {"prompts": 2, "equal": 1, "differences": [{"prompt": 1, "position": 5, "logit_gap": 0.25}]}


def test_texts_without_a_second_token_have_no_speed() -> None:
    short = (plain_sample(TEXTS[0][:1]), plain_sample(TEXTS[1]))
    run = made_up_run()
    assert prompts_with_decoding({**run.samples, TRANSFORMERS: short}) == [1]
    with pytest.raises(QspecError, match="after its first token"):
        prompts_with_decoding({**run.samples, TRANSFORMERS: (short[0], short[0])})


@pytest.mark.parametrize("other", [None, reference(*TEXTS)])
def test_the_report_is_json_and_says_what_it_left_out(other: Reference | None) -> None:
    run = made_up_run()
    figures, differing = configuration_figures(run, other), differing_prompts(run.samples)
    found = verdicts(figures, 3.0, differing, 1.15, FLOOR, [stream_figures(streams(4, plain=1.0, auto=2.0))])
    names = ("torch", "transformers", "grpcio", "protobuf", "cpu", "cores_usable", "commit", "modified", "python",
             "date")
    settings = ("model", "verify_method", "draft_method", "threads", "max_tokens", "num_prompts", "prompts",
                "prompt_tokens")
    result: dict[str, Any] = {
        "environment": {**dict.fromkeys(names), "memory_bytes": None, "load_average": [0.0]},
        "settings": dict.fromkeys(settings), "configurations": figures, "differing_prompts": differing,
        "transformers": None if other is None else transformers_agreement(run, other), "memory": memory_figures(run),
        "llama_cpp": None, "streams": [stream_figures(streams(4, plain=1.0, auto=2.0))],
        "first_token": {"runs": [{"first_text_s": 3.0, "command_s": 3.5}]},
    }
    json.dumps(result, allow_nan=False)
    text = render(result, found)
    assert ("SKIPPED" in text) == (other is None)
    assert ("texts equal to transformers': 2 of 2" in text) == (other is not None)
    assert "met: auto at least 1.15x the fastest plain decoding: 1.60x [1.60, 1.60]" in text
    assert "met: auto at least 0.98x plain decoding, 4 streams: 2.00x [2.00, 2.00]" in text
    assert "4 streams at once, tokens/s of all together, prefill included: plain 1.0, auto 2.0;" in text


def test_the_first_difference_may_be_the_end() -> None:
    assert first_difference((1, 2, 3), (1, 2, 3)) is None
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2


def test_the_common_end_is_what_the_template_adds() -> None:
    assert common_end((1, 5, 8, 9), (1, 6, 8, 9)) == (8, 9)
    assert common_end((1, 2), (3, 4)) == ()
    assert common_end((1, 2), (1, 2)) == (1, 2)
