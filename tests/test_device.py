"""Which device ``auto`` means, and what a GPU's backend has."""

from __future__ import annotations

from pathlib import Path

import pytest

from qspec import device
from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.errors import InvalidInput
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import Backend, Role, choose_draft, choose_verify


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a driver and all packages."""
    monkeypatch.setattr(device, "_DRIVER", tmp_path)
    monkeypatch.setattr(device, "PACKAGES", ("json",))


def test_what_is_named_is_meant() -> None:
    assert configured_backend(StackConfig(device="cuda")) is Backend.CUDA
    assert configured_backend(StackConfig(device="cpu")) is Backend.CPU


@pytest.mark.usefixtures("gpu")
def test_auto_means_a_gpu_that_can_run_what_was_named() -> None:
    assert configured_backend(StackConfig()) is Backend.CUDA
    assert configured_backend(StackConfig(draft_quantization="fp8", verify_quantization="none")) is Backend.CUDA
    assert configured_backend(StackConfig(draft_quantization="fp4")) is Backend.CPU
    assert configured_backend(StackConfig(verify_overrides="lm_head=int8:g32")) is Backend.CPU
    assert configured_backend(StackConfig(kernels="torch")) is Backend.CPU


@pytest.mark.usefixtures("gpu")
def test_auto_means_the_cpu_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PACKAGES", ("json", "no_such_package.part"))
    assert device.missing_packages() == ["no_such_package.part"]
    assert configured_backend(StackConfig()) is Backend.CPU


def test_auto_means_the_cpu_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "absent")
    assert configured_backend(StackConfig()) is Backend.CPU


def test_fields_are_checked() -> None:
    with pytest.raises(InvalidInput, match="device: must be one of auto, cpu, cuda, got 'tpu'"):
        StackConfig(device="tpu")
    with pytest.raises(InvalidInput, match="kernels: native ones are for a CPU"):
        StackConfig(device="cuda", kernels="native")


def test_a_gpu_emulates_nothing_and_names_what_there_is() -> None:
    with pytest.raises(
        InvalidInput, match=r"fp4 has no kernel on cuda; choose one of: none, int8, int4, fp8, w8a8, w4a8, auto, off"
    ):
        check_methods(StackConfig(device="cuda", draft_quantization="fp4"), Role.DRAFT, Backend.CUDA)
    with pytest.raises(InvalidInput, match=r"w8a8 has no kernel on cuda; choose one of: none, int8, int4, fp8, auto"):
        check_methods(StackConfig(device="cuda", verify_quantization="w8a8"), Role.VERIFY, Backend.CUDA)
    with pytest.raises(InvalidInput, match=r"none:fp32 has no kernel on cuda; choose one of: none:fp16"):
        check_methods(StackConfig(device="cuda", verify_quantization="none:fp32"), Role.VERIFY, Backend.CUDA)
    with pytest.raises(InvalidInput, match=r"fp8:plane-a8 has no kernel on cuda; choose one of: fp8:plane"):
        choose_verify("fp8:plane-a8", Backend.CUDA)


@pytest.mark.parametrize(
    ("draft", "verify", "formats"),
    [("w8a8", "int8", ("int8-row", "int8-row")), ("w4a8", "int4", ("int4-g64", "int4-g64")),
     ("int4", "int8:nibbles", ("int4-plane-g64", "int8-nibbles-g64")), ("fp8", "int8", ("e4m3-plane", "int8-row"))])
def test_integer_pairs_of_a_gpu_share_what_they_can(draft: str, verify: str, formats: tuple[str, str]) -> None:
    verifier = choose_verify(verify, Backend.CUDA)
    drafter = choose_draft(draft, Backend.CUDA, verify=verifier)
    assert drafter is not None
    assert (drafter.variant.weights, verifier.variant.weights) == formats


def test_the_pair_of_a_gpu_is_two_planes() -> None:
    verify = choose_verify("none", Backend.CUDA)
    draft = choose_draft("fp8", Backend.CUDA, verify=verify)
    assert draft is not None
    assert (verify.variant.weights, draft.variant.weights) == ("fp16-planes", "e4m3-plane")
    assert draft.variant.activations == "fp32", "16-bit ones cost nothing at small batch"
