"""The module that loses most comes first, and what is named for overrides can be typed and helps."""

from __future__ import annotations

import csv
import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qspec.__main__ import main
from qspec.errors import InvalidInput, ModelError
from qspec.evaluation.agreement import Agreement
from qspec.evaluation.scoring import ScoredModel, numbers
from qspec.evaluation.sensitivity import Grain, ModuleCost, full_name, measure_sensitivity, module_globs, worst_modules
from qspec.evaluation.sensitivity_report import sensitivity_table
from qspec.models.converted import ConvertedModel
from qspec.quant.methods import METHODS, Backend, Choice, choose_draft, choose_verify
from tests.evaluation.conftest import TEXTS
from tools.check_imports import ROOT

NONE = choose_verify("none", Backend.CPU)


def drafting(name: str, verify: Choice = NONE) -> Choice:
    choice = choose_draft(name, Backend.CPU, verify=verify)
    assert choice is not None
    return choice


def quiet(_text: str, _share: float | None) -> None:
    """Progress that nobody watches."""


class Roughened(ScoredModel):
    """One matrix has an outlier in every group, which ruins it in four bits, and others have such codes already."""

    def __init__(self, model: ConvertedModel, worst: str) -> None:
        super().__init__(model)
        weights = dict(self._weights.items())
        for name in self.layer_names:
            matrix = weights[name].clone()
            if name == worst:
                matrix[::32] *= 40.0
            else:
                matrix = self.decoded(name, "int4-g64").t().contiguous()
            weights[name] = matrix
        self._weights = _Shaped(weights)  # type: ignore[assignment]  # as much of a mapping of tensors as is used


class _Shaped(dict):  # type: ignore[type-arg]
    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    records = [{"prompt": "the quick brown fox"}, {"text": "it's 1234 o'clock, isn't it? the lazy dog"}]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grain", Grain)
def test_every_layer_belongs_to_one_glob(grain: Grain) -> None:
    kinds = ("qkv", "attention_out", "mlp_in", "mlp_out")
    names = [f"layers.{index}.{kind}" for index in range(12) for kind in kinds] + ["lm_head"]
    globs = module_globs(names, grain)
    assert len(globs) == {Grain.MATRIX: 49, Grain.LAYER: 13, Grain.KIND: 5}[grain]
    assert [fnmatch.filter(names, glob) for glob in globs] == [list(matched) for matched in globs.values()]
    assert sorted(name for matched in globs.values() for name in matched) == sorted(names)


def test_full_names_choose_the_variant_again() -> None:
    for method in METHODS.values():
        for variant in method.variants:
            choice = choose_verify(f"{method.name}:{variant.name}", Backend.CPU)
            assert choose_verify(full_name(choice), Backend.CPU) == choice
            assert drafting(full_name(choice), choose_verify("int4", Backend.CPU)).variant == variant


# ---- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worst", ["layers.0.mlp_in", "layers.1.attention_out", "lm_head"])
def test_the_worst_module_comes_first(scored: ScoredModel, worst: str) -> None:
    """With ``weight·40`` in every 32nd input, no other weight of a group of 64 is left in four bits."""
    found = measure_sensitivity(
        Roughened(scored.model, worst), drafting("int4:g64"), NONE, TEXTS, Grain.MATRIX, quiet)
    assert found.costs[0].glob == worst
    assert found.costs[0].agreement.acceptance < 0.9
    assert found.costs[1].agreement.acceptance > 0.99
    assert found.worst == found.costs[:1]
    assert found.overrides == f"{worst}=none:fp32"
    assert found.relieved.acceptance > 0.99 > found.whole.acceptance
    assert found.bytes_given_up == found.costs[0].bytes_saved > 0


def test_costs_are_those_of_each_module_alone(scored: ScoredModel) -> None:
    int4 = drafting("int4")
    found = measure_sensitivity(scored, int4, NONE, TEXTS, Grain.LAYER, quiet)
    assert {cost.glob: cost.matrices for cost in found.costs} == {"layers.0.*": 4, "layers.1.*": 4, "lm_head": 1}
    exact = scored.layers(scored.uniform(NONE))
    head = {**exact, "lm_head": scored.layer("lm_head", int4)}
    (cost,) = (cost for cost in found.costs if cost.glob == "lm_head")
    assert cost.agreement == scored.agreement(head, TEXTS, scored.logits(exact, TEXTS))
    saved = scored.layer_bytes("lm_head", "fp32") - scored.layer_bytes("lm_head", "int4-g64")
    assert cost.bytes_saved == saved
    assert found.whole.acceptance < min(cost.agreement.acceptance for cost in found.costs)
    losses = [1 - cost.agreement.acceptance for cost in found.costs]
    assert losses == sorted(losses, reverse=True)


def test_progress_never_goes_back(scored: ScoredModel) -> None:
    shares: list[float] = []
    measure_sensitivity(scored, drafting("int8"), NONE, TEXTS[1:], Grain.KIND, lambda _text, share: shares.append(
        -1.0 if share is None else share))
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_a_method_beside_itself_is_refused(scored: ScoredModel) -> None:
    with pytest.raises(InvalidInput, match="nothing can differ"):
        measure_sensitivity(scored, drafting("int4"), drafting("int4:g64"), TEXTS, Grain.LAYER, quiet)
    assert numbers(drafting("int4")) == numbers(drafting("int4:g64"))


def test_overrides_are_few_and_never_all() -> None:
    def cost(glob: str, lost: float) -> ModuleCost:
        agreement = Agreement(positions=100, same_argmax=90, overlap_sum=100 * (1 - lost), divergence_sum=1.0)
        return ModuleCost(glob=glob, matrices=1, agreement=agreement, bytes_saved=10)

    def named(*losses: float) -> int:
        return len(worst_modules([cost(f"m{index}", lost) for index, lost in enumerate(losses)]))

    assert named(0.5, 0.1, 0.1) == 1
    assert named(0.2, 0.2, 0.1, 0.1, 0.1) == 2
    assert named(*[0.1] * 20) == 4
    assert named(0.1, 0.1) == 1
    assert named(0.1) == 0


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_sorted_table_and_writes_files(
    wide: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = ["--method", "int4", "--texts", str(texts), "--per", "kind", "--output", str(tmp_path / "new" / "out")]
    assert main(["sensitivity", str(wide), *options]) == 0
    captured = capsys.readouterr()
    assert "% " in captured.err, "progress is told on standard error"
    lines = captured.out.splitlines()
    assert lines[0].split()[:2] == ["module", "matrices"]
    kinds = {"layers.*.qkv", "layers.*.attention_out", "layers.*.mlp_in", "layers.*.mlp_out", "lm_head"}
    rows = [line.split() for line in lines[1:6]]
    assert {row[0] for row in rows} == kinds
    losses = [float(row[2]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    last = re.fullmatch(r"helps most: (\S+): acceptance ([\d.]+) -> ([\d.]+), greedy .* for ([\d.]+) MB more a pass",
                        lines[-1])
    assert last is not None
    assert float(last[3]) > float(last[2])
    for override in last[1].split(","):
        glob, _, method = override.partition("=")
        assert glob in kinds
        assert choose_verify(method, Backend.CPU) == NONE
    output = tmp_path / "new" / "out"
    assert {path.name for path in output.iterdir()} == {f"sensitivity.{suffix}" for suffix in ("csv", "json", "png")}
    record = json.loads((output / "sensitivity.json").read_text("utf-8"))
    with (output / "sensitivity.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["module"] for row in table] == [module["module"] for module in record["modules"]] == [
        row[0] for row in rows]
    assert [float(row["acceptance_lost"]) for row in table] == [
        module["acceptance_lost"] for module in record["modules"]]
    assert record["overrides"]["value"] == last[1]
    assert record["whole"]["method"] == "int4:g64"
    assert (output / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_tells_the_whole_and_what_the_overrides_leave(scored: ScoredModel) -> None:
    found = measure_sensitivity(scored, drafting("int8"), NONE, TEXTS, Grain.MATRIX, quiet)
    *_, whole, relieved = sensitivity_table(found).splitlines()
    assert re.match(r"all of them +9 ", whole)
    assert re.match(rf"all but the overrides +{9 - len(found.worst)} ", relieved)


def test_options_that_cannot_be_used_are_named(wide: Path, texts: Path, tmp_path: Path) -> None:
    def refused(expected: str, *options: str) -> None:
        with pytest.raises(InvalidInput, match=expected):
            main(["sensitivity", str(wide), "--texts", str(texts), "--no-plot", *options])

    refused("--method: unknown method 'int7'; choose one of: none, ", "--method", "int7")
    refused("--method: unknown variant 'int4:g7'", "--method", "int4:g7")
    refused("--method: 'off' is no method", "--method", "off")
    refused("--against: unknown method 'int7'", "--method", "int4", "--against", "int7")
    refused("--method: int4:g64 is what it is compared with", "--method", "int4", "--against", "int4")
    refused("--positions: must be at least 2", "--method", "int4", "--positions", "1")
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("", "utf-8")
    short.write_text("a", "utf-8")
    refused("--texts: .* is empty", "--method", "int4", "--texts", str(empty))
    refused("--texts: .* holds no text of at least two tokens", "--method", "int4", "--texts", str(short))
    refused("--texts: .* cannot be read", "--method", "int4", "--texts", str(tmp_path / "absent.txt"))
    refused("--output: .* cannot be written", "--method", "int8", "--output", str(empty / "below"))
    with pytest.raises(ModelError):
        main(["sensitivity", str(tmp_path), "--texts", str(texts), "--method", "int4"])


def test_a_layer_that_cannot_be_grouped_is_named(texts: Path, wide: Path, tmp_path: Path) -> None:
    from tests.tiny_models import write_tiny_model

    write_tiny_model(tmp_path / "narrow", "llama")
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv"):
        main(["sensitivity", str(tmp_path / "narrow"), "--texts", str(texts), "--method", "int4"])


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    wide: Path, texts: Path, tmp_path: Path
) -> None:
    code = (
        "import importlib.util as u; original = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else original(name, *rest)\n"
        "from qspec.cli import run_program\nfrom qspec.__main__ import main\nrun_program(main)\n"
    )
    command = [sys.executable, "-c", code, "sensitivity", str(wide), "--method", "int4", "--per", "kind",
               "--texts", str(texts), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --output: the plot needs matplotlib; pip install matplotlib, or give --no-plot\n"
    assert not (tmp_path / "out").exists()
    done = subprocess.run([*command, "--no-plot"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, len(list((tmp_path / "out").iterdir()))) == (0, 2)


def test_the_program_itself_loads_no_tensor_library() -> None:
    code = "import sys, qspec.__main__; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
