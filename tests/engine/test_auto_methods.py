"""``auto`` on real engines: steps timed once, kept, and a choice that both workers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qspec.config import StackConfig, cache_directory
from qspec.engine.auto_methods import resolve_methods
from qspec.engine.drafter import LocalDrafter
from qspec.engine.step_time_cache import read_step_times, step_times_path, write_step_times
from qspec.engine.step_times import measure_step_times
from qspec.engine.verifier import LocalVerifier
from qspec.errors import InvalidInput
from qspec.kernels.native.threads import Threads
from qspec.models.config import DecoderConfig
from qspec.models.converted import prepare
from qspec.pair_choice import candidate_pairs
from qspec.quant.methods import METHODS, Backend
from tests.engine.stacks import attached_loop, config, generate, quiet, running, sequences
from tests.native_kernels import require_native

FAMILIES = ("llama", "qwen3", "gpt2")
WANTED = {("fp32-rows", "fp32"): (1, 2, 5), ("fp16-planes", "fp32"): (1, 3), ("int8-row", "int8 per token"): (1,)}


@pytest.fixture(scope="module", autouse=True)
def native() -> None:
    """There is something to choose from on native kernels only."""
    require_native()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def kept() -> list[Path]:
    return sorted((cache_directory() / "step-times").glob("*.json"))


def auto(model: Path, **changes: str) -> StackConfig:
    methods = {"draft_quantization": "auto", "verify_quantization": "auto", **changes}
    return replace(config(model, kernels="native"), **methods)  # type: ignore[arg-type]


def resolved(settings: StackConfig, told: list[str] | None = None) -> tuple[StackConfig, str]:
    model = prepare(settings.model, progress=quiet)
    tell = quiet if told is None else lambda text, _share: told.append(text)
    return resolve_methods(settings, model, Backend.CPU_NATIVE, tell)


@pytest.fixture
def wide(model_of: Callable[[str], Path]) -> Path:
    """A model that every group size divides."""
    return model_of("llama_wide")


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_every_family_are_timed(model_of: Callable[[str], Path], family: str) -> None:
    shape = prepare(str(model_of(family)), progress=quiet).config
    found = measure_step_times(shape, WANTED, Threads(1, bind=False), least=1)
    assert {kind: set(times) for kind, times in found.items()} == {kind: set(rows) for kind, rows in WANTED.items()}
    assert all(0 < seconds < 1 for times in found.values() for seconds in times.values())


def test_without_time_only_what_every_pair_needs_is_measured(model: Path) -> None:
    shape = prepare(str(model), progress=quiet).config
    found = measure_step_times(shape, WANTED, Threads(1, bind=False), least=2, seconds=0.0)
    assert list(found) == list(WANTED)[:2]


def test_a_format_that_does_not_fit_the_model_is_left_out(model: Path) -> None:
    shape = prepare(str(model), progress=quiet).config
    wanted = {("int4-g128", "fp32"): (1,), ("int8-row", "fp32"): (1,)}
    assert shape.hidden_size % 128
    assert list(measure_step_times(shape, wanted, Threads(1, bind=False), least=1)) == [("int8-row", "fp32")]


def large(model: Path, layers: int) -> DecoderConfig:
    """A shape of more weights than are timed; tens of megabytes a layer."""
    shape = prepare(str(model), progress=quiet).config
    return replace(shape, num_layers=layers, hidden_size=1024, num_heads=16, num_kv_heads=4, head_dim=64,
                   intermediate_size=4096, vocab_size=100_000)


def test_a_large_model_is_timed_by_a_part_of_it_and_scaled(model: Path) -> None:
    wanted = {("int4-g64", "fp32"): (1,)}
    times = [
        measure_step_times(large(model, layers), wanted, Threads(1, bind=False), least=1)["int4-g64", "fp32"][1]
        for layers in (40, 400)
    ]
    weights = [layers * (1024 * 1536 + 1024 * 1024 + 3 * 1024 * 4096) + 1024 * 100_000 for layers in (40, 400)]
    expected = weights[1] / weights[0]
    assert expected / 3 < times[1] / times[0] < expected * 3


def test_the_first_start_measures_and_later_ones_choose_the_same(model: Path, cache: Path) -> None:
    told: list[str] = []
    first, reason = resolved(auto(model), told)
    assert any(line.startswith("timed ") and "kept in" in line for line in told)
    assert first.draft_quantization in {each.names[0] for each in candidate_pairs("auto", "auto", Backend.CPU_NATIVE)}
    assert first.verify_quantization in ("none:fp32", "none:fp16")
    assert f"{first.draft_quantization} drafting for {first.verify_quantization}, for " in reason
    assert len(kept()) == 1
    told.clear()
    assert resolved(auto(model), told) == (first, reason)
    assert told == []


def test_named_methods_are_not_timed(model: Path, cache: Path) -> None:
    settings = auto(model, draft_quantization="w8a8", verify_quantization="none")
    assert resolved(settings) == (settings, "")
    only, reason = resolved(auto(model, draft_quantization="off", verify_quantization="none"))
    assert (only.draft_quantization, reason) == ("off", "")
    assert kept() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": [["a", "b", {"1": -1.0}]]}', '{"steps": 3}', "\x00"])
def test_a_damaged_file_is_measured_anew(model: Path, cache: Path, text: str) -> None:
    first, _ = resolved(auto(model))
    (path,) = kept()
    path.write_text(text)
    assert read_step_times(path) == {}
    told: list[str] = []
    resolved(auto(model), told)
    assert any(line.startswith("timed ") for line in told)
    assert read_step_times(path)
    assert first.model == str(model)


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(model: Path, cache: Path) -> None:
    prepare(str(model), progress=quiet)
    (cache / "step-times").write_text("a file where the directory should be")
    told: list[str] = []
    found, _ = resolved(auto(model), told)
    assert found.verify_quantization != "auto"
    assert any("not kept: the cache cannot be written" in line for line in told)


def test_figures_survive_the_file(tmp_path: Path, model: Path) -> None:
    times = {("fp32-rows", "fp32"): {1: 0.25, 5: 0.125}, ("int8-row", "int8 per token"): {1: 1e-9}}
    shape = prepare(str(model), progress=quiet).config
    path = tmp_path / "deep" / step_times_path(shape, "a processor", 2).name
    assert write_step_times(path, times)
    assert read_step_times(path) == times
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    names = {step_times_path(shape, *rest).name for rest in (("a processor", 2), ("a processor", 4), ("another", 2))}
    assert len(names) == 3
    assert not math.isnan(read_step_times(path)["fp32-rows", "fp32"][1])


def test_the_drafter_takes_what_the_verifier_found(model: Path) -> None:
    settings = auto(model)
    verifier = LocalVerifier.load(settings, progress=quiet, epoch=1)
    drafter = LocalDrafter.load(settings, progress=quiet)
    try:
        about = verifier.describe()
        assert "auto" not in (about.draft_quantization, about.verify_quantization) and about.auto_reason
        drafted = generate(attached_loop(verifier, drafter), sequences(draft_length=3))
        method, _, variant = about.draft_quantization.partition(":")
        chosen = drafter.weights.methods.default
        assert (chosen.method, chosen.variant.name) == (method, variant)
    finally:
        drafter.close()
        verifier.close()
    with running(model, kernels="native", draft_quantization="off",
                 verify_quantization=about.verify_quantization) as alone:
        assert generate(alone.loop, sequences()) == drafted


def test_one_method_can_be_left_to_auto(wide: Path) -> None:
    with running(wide, kernels="native", draft_quantization="auto", verify_quantization="int8") as stack:
        about = stack.verifier.describe()
        assert about.verify_quantization == "int8" and about.draft_quantization.partition(":")[0] in METHODS
        assert stack.drafter is not None
        drafted = generate(stack.loop, sequences(draft_length=3))
    with running(wide, kernels="native", draft_quantization="off", verify_quantization="int8") as alone:
        assert generate(alone.loop, sequences()) == drafted


def test_a_drafter_cannot_take_a_method_from_a_stack_without_one(model: Path) -> None:
    verifier = LocalVerifier.load(
        auto(model, draft_quantization="off", verify_quantization="none"), progress=quiet, epoch=1)
    drafter = LocalDrafter.load(auto(model), progress=quiet)
    try:
        with pytest.raises(InvalidInput, match="draft_quantization: the verifier was told that there is no drafter"):
            drafter.attach(verifier.describe())
    finally:
        drafter.close()
        verifier.close()
