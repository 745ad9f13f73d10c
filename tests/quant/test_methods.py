"""The table of methods: names, the choice of variants, what errors list, the command that prints it."""

from __future__ import annotations

import pytest

from qspec.__main__ import main
from qspec.engine.backend import describe_backend, machine_backend
from qspec.errors import InvalidInput
from qspec.quant.activations import ACTIVATIONS
from qspec.quant.methods import (
    METHODS,
    Backend,
    Role,
    Support,
    check_draft_method,
    check_verify_method,
    choose_draft,
    choose_verify,
)
from qspec.quant.methods_table import methods_table
from qspec.quant.weight_formats import WEIGHT_FORMATS

NAMES = ["none", "int8", "int4", "fp8", "fp4", "w8a8", "w4a8"]


def test_every_method_is_there_for_both_roles() -> None:
    assert list(METHODS) == NAMES
    for method in METHODS.values():
        assert len({variant.name for variant in method.variants}) == len(method.variants)
        for variant in method.variants:
            assert variant.weights in WEIGHT_FORMATS
            assert variant.activations in ACTIVATIONS
            assert all(variant.on(Backend.CPU, role) is not Support.ABSENT for role in Role)
    real = {
        (method.name, variant.name, role)
        for method in METHODS.values() for variant in method.variants for role in Role
        if variant.on(Backend.CPU, role) is Support.REAL
    }
    assert real == {("none", "fp32", Role.DRAFT), ("none", "fp32", Role.VERIFY), ("w8a8", "row", Role.DRAFT)}


def test_the_native_column_is_what_the_kernels_read() -> None:
    from qspec.kernels.native.weights import supports
    from qspec.quant.native_formats import NATIVE_WEIGHTS, has_native_kernel

    layouts = {layout: weights for weights, layout in NATIVE_WEIGHTS.items()}
    for weights in WEIGHT_FORMATS:
        for activations in ACTIVATIONS:
            assert has_native_kernel(weights, activations) == supports(layouts.get(weights, weights), activations)
    assert choose_verify("none", Backend.CPU_NATIVE).variant.weights == "fp32-rows"
    assert choose_verify("none:fp16", Backend.CPU_NATIVE).label == "none (fp16)"
    assert choose_verify("fp4", Backend.CPU_NATIVE).label == "fp4 (nvfp4, emulated)"
    assert choose_draft(
        "w8a8", Backend.CPU_NATIVE, verify=choose_verify("int8", Backend.CPU_NATIVE)).label == "w8a8"


@pytest.mark.parametrize(
    ("draft", "verify", "variant"),
    [
        ("fp8", "none:fp16", "plane"), ("fp8", "none", "row"), ("none", "none:fp16", "fp16"), ("none", "int8", "fp32"),
        ("w8a8", "int8", "row"), ("w4a8", "int4:g32", "g32"), ("w4a8", "int4", "g64"), ("w4a8", "none", "g64"),
        ("fp4", "int4:g128-asymmetric", "g128-asymmetric"), ("fp4", "none", "nvfp4"), ("fp4", "fp4:mxfp4", "mxfp4"),
        ("int4", "int8:nibbles", "plane"), ("w4a8", "int8:nibbles", "plane"), ("int4", "int8", "g64"),
        ("w4a8", "int4:nf4", "nf4"), ("int4", "int4:fp4", "fp4"), ("fp4", "int4:nf4", "nvfp4"),
        ("int4:g32", "int8:nibbles", "g32"), ("fp8:plane-a8", "none:fp16", "plane-a8"),
    ],
)
def test_a_drafter_takes_what_the_verifier_holds(draft: str, verify: str, variant: str) -> None:
    choice = choose_draft(draft, Backend.CPU, verify=choose_verify(verify, Backend.CPU))
    assert choice is not None
    assert choice.variant.name == variant


def test_labels_say_which_variant_it_is() -> None:
    assert choose_verify("none", Backend.CPU).label == "none (fp32)"
    assert choose_verify("none:fp16", Backend.CPU).label == "none (fp16, emulated)"
    assert choose_verify("w8a8", Backend.CPU).label == "w8a8 (emulated)"
    drafting = choose_draft("w8a8", Backend.CPU, verify=choose_verify("none", Backend.CPU))
    assert drafting is not None and drafting.label == "w8a8"
    assert choose_draft("off", Backend.CPU, verify=choose_verify("none", Backend.CPU)) is None
    check_draft_method("off", Backend.CPU)


def test_a_method_named_alone_may_draft_with_another_variant_for_large_batches_on_a_gpu() -> None:
    verify = choose_verify("none", Backend.CUDA)
    alone, pinned = (choose_draft(name, Backend.CUDA, verify=verify) for name in ("fp8", "fp8:plane"))
    assert alone is not None and pinned is not None and alone.batched is not None
    assert (alone.variant, alone.batched.name) == (pinned.variant, "plane-a8")
    assert alone.batched.weights == alone.variant.weights
    assert alone.label == "fp8 (plane, e4m3 per token in large batches)"
    assert (pinned.batched, pinned.label) == (None, "fp8 (plane)")
    on_cpu = choose_draft("fp8", Backend.CPU, verify=choose_verify("none:fp16", Backend.CPU))
    assert on_cpu is not None and on_cpu.batched is None
    assert choose_verify("fp8", Backend.CUDA).batched is None


def test_errors_list_what_there_is() -> None:
    known = ", ".join([*NAMES, "auto"])
    with pytest.raises(InvalidInput, match=rf"draft_quantization: unknown method 'int3'.*{known}, off$"):
        check_draft_method("int3", Backend.CPU)
    with pytest.raises(InvalidInput, match=rf"verify_quantization: unknown method 'off'.*{known}$"):
        check_verify_method("off", Backend.CPU)
    with pytest.raises(InvalidInput, match=r"variant 'fp8:g64'; choose one of: fp8:row, fp8:plane, fp8:plane-a8"):
        check_verify_method("fp8:g64", Backend.CPU)
    with pytest.raises(InvalidInput, match="unknown variant 'none:'"):
        check_draft_method("none:", Backend.CPU)


def test_the_command_prints_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for method in METHODS.values():
        for variant in method.variants:
            assert sum(line.startswith(f"{method.name}:{variant.name} ") for line in lines) == 1
    fp4 = next(line.split() for line in lines if line.startswith("fp4"))
    assert "emulated" in fp4 and "real" not in fp4
    w8a8 = next(line.split() for line in lines if line.startswith("w8a8"))
    (told,) = [line for line in lines if line.startswith("Backend: ")]
    assert told == f"Backend: {describe_backend(machine_backend())}."
    assert ("emulated" in w8a8) == (machine_backend() is Backend.CPU)
    assert "real" in w8a8
    assert "absent" in methods_table(Backend.CPU, [("w8a8", Role.DRAFT)])
    with pytest.raises(SystemExit):
        main(["no-such-command"])
