"""The generated table of methods on a tiny model: the rows that it must have, with figures that are possible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.environment import ROOT
from benchmarks.method_figures import Answer, answer_logits, own_answers
from benchmarks.method_pairs import LIKE_Q4_1, all_choices, can_decide, sensible_pairs
from benchmarks.methods import main
from qspec.calibration.config import CalibrationConfig
from qspec.calibration.quantised_model import quantise_model
from qspec.errors import InvalidInput
from qspec.evaluation.scoring import ScoredModel
from qspec.evaluation.sensitivity import full_name
from qspec.models.converted import prepare
from qspec.quant.methods import METHODS, Backend, choose_verify
from tests.tiny_models import write_tiny_model

PROMPTS = ("the quick brown fox", "it's 1234 o'clock", "the lazy dog")
ANSWER_TOKENS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with ``wide``, which every group size divides, ``narrow``, prompts and a text; one torch thread."""
    directory = tmp_path_factory.mktemp("methods")
    write_tiny_model(directory / "wide", "llama_wide")
    write_tiny_model(directory / "narrow", "llama")
    (directory / "prompts.jsonl").write_text("\n".join(json.dumps({"turns": [text]}) for text in PROMPTS), "utf-8")
    (directory / "text.txt").write_text("the quick brown fox jumps over the lazy dog, isn't it? " * 3, "utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield directory
    torch.set_num_threads(threads)


def generate(models: Path, name: str, *options: str) -> str:
    """The document of a model."""
    output = models / f"{name}.md"
    arguments = [
        "--model", str(models / name), "--prompts", str(models / "prompts.jsonl"), "--text", str(models / "text.txt"),
        "--answer-tokens", str(ANSWER_TOKENS), "--output", str(output), *options,
    ]
    assert main(arguments) == 0
    return output.read_text("utf-8")


def tables(document: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a document, a row as heading to cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", document, flags=re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


@pytest.fixture(scope="module")
def document(models: Path) -> str:
    """Of the model that every format suits."""
    return generate(models, "wide")


def test_every_variant_and_every_sensible_pair_has_its_row(document: str) -> None:
    methods, pairs = tables(document)
    shown = [re.sub(r"[`¹]| \(real\)", "", row["method"]) for row in methods]
    assert sorted(shown) == sorted(map(full_name, all_choices()))
    expected = [(full_name(pair.draft), full_name(pair.verify)) for pair in sensible_pairs(all_choices())]
    assert [tuple(re.sub(r"`| \(real\)", "", row[side]) for side in ("draft", "verify")) for row in pairs] == expected


def test_the_figures_can_be_read_and_are_possible(document: str) -> None:
    methods, pairs = tables(document)
    for row in [*methods, *pairs]:
        greedy, acceptance, divergence = float(row["greedy"]), float(row["T = 1"]), float(row["KL, nats"])
        assert 0 <= greedy <= 1
        assert 0 < acceptance <= 1
        assert divergence >= 0
        assert 2 * (1 - acceptance) ** 2 <= divergence + 1e-3, "Pinsker's inequality"
    for row in methods:
        assert 1 < float(row["perplexity"]) < 1e4
        assert float(row["bits/weight"]) >= 4
        assert row["weight error, dB"] == "∞" or 5 < float(row["weight error, dB"]) < 150
    exact = next(row for row in methods if row["method"] == "`none:fp32`")
    assert (exact["greedy"], exact["T = 1"], exact["KL, nats"], exact["weight error, dB"]) == (
        "1.000", "1.000", "0.0000", "∞")


def test_shared_weights_have_no_private_copy(document: str) -> None:
    private = {(row["draft"], row["verify"]): float(row["private, MB"]) for row in tables(document)[1]}
    assert private["`fp8:plane`", "`none:fp16`"] == 0
    assert private["`w4a8:g64`", "`int4:g64`"] == 0
    assert private["`w8a8` (real)", "`int8:row`"] > 0, "the kernel's packing is a copy"
    assert private["`int4:g64`", "`none:fp32`"] > 0


def test_the_document_says_what_it_was_measured_on(document: str, models: Path) -> None:
    assert "prompts of `prompts.jsonl`, at most 12 tokens each" in document
    assert re.search(r"CPU .*, torch \d+\.\d+.*, Python 3\.", document)
    assert str(models.parent) not in document.replace(str(models / "wide"), ""), "no directory of this machine"
    positions = re.search(r"Over (\d+) positions", document)
    assert positions is not None
    assert 1 <= int(positions[1]) <= len(PROMPTS) * ANSWER_TOKENS


def test_formats_like_the_model_file_s_own_are_marked_and_in_no_pair(document: str) -> None:
    methods, pairs = tables(document)
    assert {row["weights"] for row in methods if "¹" in row["method"]} == LIKE_Q4_1
    assert not [row for row in pairs if re.search("g32-(asymmetric|minimum)", row["draft"] + row["verify"])]


def test_formats_that_do_not_suit_the_model_are_named(models: Path) -> None:
    document = generate(models, "narrow", "--prompts-count", "1")
    assert "`int4:g64`, " in document
    assert "groups of 64 do not divide its 32 inputs" in document
    shown = {row["weights"] for row in tables(document)[0]}
    assert {"fp32", "int8-row", "nvfp4"} <= shown
    assert "int4-g64" not in shown


# ---- the rule -------------------------------------------------------------------------------------------------------


def test_the_rule_has_the_known_pairs_and_none_that_are_absurd() -> None:
    pairs = {(full_name(pair.draft), full_name(pair.verify)) for pair in sensible_pairs(all_choices())}
    assert {
        ("w8a8", "none:fp32"), ("fp8:row", "int8:row"), ("fp8:plane", "none:fp16"), ("w8a8", "int8:row"),
        ("w4a8:g64", "int4:g64"), ("fp4:g64", "int4:g64"), ("int4:plane", "int8:nibbles"),
    } <= pairs
    for pair in sensible_pairs(all_choices()):
        assert pair.draft.variant.bits_per_weight <= pair.verify.variant.bits_per_weight
        assert pair.verify.variant.activations == "fp32"
        assert pair.draft != pair.verify
    assert {full_name(choice).partition(":")[0] for choice in all_choices() if can_decide(choice)} == {
        "none", "int8", "int4"}
    assert len(all_choices()) == sum(len(method.variants) for method in METHODS.values())


# ---- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_the_models_own_and_only_they_count(models: Path) -> None:
    prompts = [(5, 9, 5, 9, 5), (17,), tuple(range(3, 20))]
    answers = own_answers(str(models / "wide"), prompts, ANSWER_TOKENS)
    assert [answer.prompt for answer in answers] == prompts
    scored = ScoredModel(prepare(str(models / "wide"), progress=lambda _text, _share: None))
    layers = scored.layers(scored.uniform(choose_verify("none", Backend.CPU)))
    logits = answer_logits(scored.decoder(layers, 64), answers)
    said = [token for answer in answers for token in answer.token_ids]
    assert logits.argmax(-1).tolist() == said, "a greedy answer is what its own model finds most probable"
    assert all(1 <= len(answer.token_ids) <= ANSWER_TOKENS for answer in answers)
    assert len(answer_logits(scored.decoder(layers, 64), [Answer((5, 9), (1, 2, 3))])) == 3


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--prompts-count", "0"), "--prompts-count: must be at least 1"),
        (("--answer-tokens", "0"), "--answer-tokens: must be at least 1"),
        (("--answer-tokens", "128"), "--answer-tokens: must be below the model's 128 positions"),
        (("--text", "empty.txt"), "--text: .* is empty"),
        (("--prompts", "absent.jsonl"), "--prompts: .* cannot be read"),
    ],
)
def test_options_that_cannot_be_used_are_named(
    models: Path, options: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    Path("empty.txt").write_text("", "utf-8")
    with pytest.raises(InvalidInput, match=expected):
        generate(models, "wide", *options)


def test_the_text_in_the_repository_is_long_enough_and_says_what_it_is() -> None:
    text = (ROOT / "benchmarks" / "public_domain.txt").read_text("utf-8")
    assert 2000 <= len(text.split()) <= 3500
    assert "public domain" in text.splitlines()[0]


def test_calibrated_codes_stand_beside_rounded_ones(models: Path) -> None:
    made = quantise_model(CalibrationConfig(
        model=str(models / "wide"), output=models / "calibrated", calibration=models / "prompts.jsonl",
        method="int4:g32-asymmetric", answer_tokens=8,
    ), lambda _text, _share: None)
    document = generate(models, "wide", "--calibrated", str(made.directory))
    *_, calibrated = tables(document)
    assert [row["codes chosen by"] for row in calibrated] == ["rounded to nearest", "gptq"]
    assert {row["method"] for row in calibrated} == {"`int4:g32-asymmetric`"}
    rounded = next(row for row in tables(document)[0] if row["method"].startswith("`int4:g32-asymmetric`"))
    assert all(calibrated[0][column] == rounded[column] for column in ("perplexity", "greedy", "T = 1", "KL, nats"))
    assert float(calibrated[1]["KL, nats"]) != float(rounded["KL, nats"])


def test_a_directory_of_another_model_is_refused(models: Path) -> None:
    with pytest.raises(InvalidInput, match="--calibrated.*no quantised form of this model"):
        generate(models, "wide", "--calibrated", str(models / "narrow"))
