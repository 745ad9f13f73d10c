"""Figures and verdicts from made-up samples."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.report import (
    TRANSFORMERS,
    configuration_figures,
    differing_prompts,
    memory_figures,
    prompts_with_decoding,
    transformers_agreement,
    verdicts,
)
from benchmarks.samples import Sample, first_difference
from benchmarks.stack_run import AUTO, CONFIGURATIONS, PLAIN, PLAIN_ALONE, StackRun, common_end
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
    info = pb.GetServerInfoResponse(memory=[pb.MemoryLine(owner="arena", name="weights", bytes=1 << 20, shared=True)])
    return StackRun(prompts=((1, 2), (3, 4)), samples={**samples, **changes}, info=info, memory=())


def reference(*texts: tuple[int, ...]) -> Reference:
    """transformers at half the speed of plain decoding."""
    samples = tuple(replace(plain_sample(text, step_s=0.2), speculation=None) for text in texts)
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
    found = verdicts(configuration_figures(run, other), first_token_s, differing_prompts(run.samples))
    return [verdict.met for verdict in found]


def test_targets_that_are_met() -> None:
    assert verdicts_of(made_up_run(), reference(*TEXTS)) == [True] * 5


def test_targets_that_are_missed() -> None:
    slow = tuple(plain_sample(text, step_s=0.19) for text in TEXTS)
    slow = tuple(
        replace(sample, speculation=replace(sample.speculation, rpc_s=sample.decode_s / 10))  # type: ignore[type-var]
        for sample in slow)
    different = (slow[0], replace(slow[1], token_ids=(*TEXTS[1][:-1], 7)))
    assert verdicts_of(made_up_run(auto=different), reference(*TEXTS), 10.1) == [False] * 5


def test_what_was_skipped_is_neither_met_nor_missed() -> None:
    assert verdicts_of(made_up_run(), None) == [True, None, True, True, True]


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
    found = verdicts(figures, 3.0, differing)
    names = ("torch", "transformers", "grpcio", "protobuf", "cpu", "cores_usable", "commit", "modified", "python",
             "date")
    settings = ("model", "verify_method", "draft_method", "threads", "max_tokens", "num_prompts", "prompts",
                "prompt_tokens")
    result: dict[str, Any] = {
        "environment": {**dict.fromkeys(names), "memory_bytes": None, "load_average": [0.0]},
        "settings": dict.fromkeys(settings), "configurations": figures, "differing_prompts": differing,
        "transformers": None if other is None else transformers_agreement(run, other), "memory": memory_figures(run),
        "llama_cpp": None,
        "first_token": {"runs": [{"first_text_s": 3.0, "command_s": 3.5}]},
    }
    json.dumps(result, allow_nan=False)
    text = render(result, found)
    assert ("SKIPPED" in text) == (other is None)
    assert ("texts equal to transformers': 2 of 2" in text) == (other is not None)
    assert "met: auto at least 0.97x the fastest plain decoding: 1.60x [1.60, 1.60]" in text


def test_the_first_difference_may_be_the_end() -> None:
    assert first_difference((1, 2, 3), (1, 2, 3)) is None
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2


def test_the_common_end_is_what_the_template_adds() -> None:
    assert common_end((1, 5, 8, 9), (1, 6, 8, 9)) == (8, 9)
    assert common_end((1, 2), (3, 4)) == ()
    assert common_end((1, 2), (1, 2)) == (1, 2)
