"""Overrides of the method for single layers: what is written, which one wins, what each layer gets, what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qspec.config import StackConfig
from qspec.errors import InvalidInput
from qspec.quant.method_plan import MethodPlan, check_methods, plan_draft, plan_verify
from qspec.quant.methods import METHODS, Backend, Role, choose_draft, choose_verify
from qspec.quant.overrides import Override, parse_overrides

LAYERS = [f"layers.{layer}.{name}" for layer in range(12) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")]
LAYERS.append("lm_head")


def verify_plan(method: str = "none", overrides: str = "") -> MethodPlan:
    config = StackConfig(verify_quantization=method, verify_overrides=overrides)
    return plan_verify(config, LAYERS, Backend.CPU)


def draft_plan(method: str, overrides: str = "", *, verify: MethodPlan) -> MethodPlan:
    return plan_draft(
        StackConfig(draft_quantization=method, draft_overrides=overrides), Backend.CPU, verify=verify)


def weights(plan: MethodPlan, *layers: str) -> list[str]:
    return [plan.weights(layer) for layer in layers]


# ---- what is written ------------------------------------------------------------------------------------------------


def test_a_list_keeps_its_order() -> None:
    assert parse_overrides("lm_head=w8a8, layers.0.*=int4:g32", Role.DRAFT) == (
        Override("lm_head", "w8a8"), Override("layers.0.*", "int4:g32"),
    )
    assert parse_overrides("", Role.VERIFY) == parse_overrides("  ", Role.DRAFT) == ()


@pytest.mark.parametrize("text", ["lm_head", "=none", "lm_head=", "lm_head=none,", ",", "lm_head=none,,lm_head=int8"])
@pytest.mark.parametrize(("role", "field"), [(Role.DRAFT, "draft_overrides"), (Role.VERIFY, "verify_overrides")])
def test_what_is_no_override_is_named_with_its_field(text: str, role: Role, field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: '.*' is not GLOB=METHOD; write for example lm_head=none"):
        parse_overrides(text, role)


def test_unknown_methods_and_variants_list_what_there_is() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_overrides("lm_head=int3,*=fp8:g7,nonsense,*=off", Role.DRAFT)
    said = [(violation.field, violation.description) for violation in caught.value.violations]
    assert {field for field, _ in said} == {"draft_overrides"}
    assert [text.split(";")[0] for _, text in said] == [
        "unknown method 'int3'", "unknown variant 'fp8:g7'", "'nonsense' is not GLOB=METHOD", "unknown method 'off'",
    ]
    assert said[0][1].endswith(f"choose one of: {', '.join(METHODS)}"), "'off' is for a whole drafter"


def test_everything_about_one_worker_is_named_at_once() -> None:
    config = StackConfig(draft_quantization="int3", draft_overrides="x", verify_overrides="y")
    with pytest.raises(InvalidInput) as caught:
        check_methods(config, Role.DRAFT, Backend.CPU)
    assert [violation.field for violation in caught.value.violations] == ["draft_quantization", "draft_overrides"]
    with pytest.raises(InvalidInput, match=r"^verify_overrides: 'y'"):
        check_methods(config, Role.VERIFY, Backend.CPU)
    check_methods(StackConfig(draft_quantization="off"), Role.DRAFT, Backend.CPU)


# ---- which one wins -------------------------------------------------------------------------------------------------


def test_the_last_match_wins() -> None:
    plan = verify_plan("int8", "layers.*=int4,layers.0.*=none,layers.*.mlp_out=fp8")
    named = ("layers.0.qkv", "layers.0.mlp_out", "layers.1.qkv", "layers.1.mlp_out", "lm_head")
    assert weights(plan, *named) == ["fp32", "e4m3-row", "int4-g64", "e4m3-row", "int8-row"]
    assert weights(verify_plan("int8", "layers.0.*=none,layers.*=int4"), "layers.0.qkv") == ["int4-g64"]


def test_a_glob_means_whole_names() -> None:
    plan = verify_plan("none", "layers.1.*=int8,layers.[2-3].qkv=int4,layers.1?.qkv=fp8")
    named = ("layers.1.qkv", "layers.10.qkv", "layers.10.mlp_in", "layers.2.qkv", "layers.2.mlp_in", "layers.4.qkv")
    assert weights(plan, *named) == ["int8-row", "e4m3-row", "fp32", "int4-g64", "fp32", "fp32"]


@pytest.mark.parametrize("method", METHODS)
def test_without_overrides_every_layer_has_the_default(method: str) -> None:
    verify = verify_plan(method)
    assert verify.default == choose_verify(method, Backend.CPU)
    assert verify.layers == dict.fromkeys(LAYERS, verify.default)
    assert list(verify.layers) == LAYERS
    assert verify.label == verify.default.label
    for draft in METHODS:
        plan = draft_plan(draft, verify=verify)
        assert plan.layers == dict.fromkeys(LAYERS, choose_draft(draft, Backend.CPU, verify=verify.default))


def test_a_draft_variant_follows_the_store_of_each_layer() -> None:
    store = verify_plan("int4:g32", "lm_head=none:fp16,layers.0.*=int8:nibbles,layers.1.qkv=none")
    plan = draft_plan("w4a8", "lm_head=fp8,layers.*.mlp_in=int4:g128", verify=store)
    named = ("layers.2.qkv", "layers.0.qkv", "layers.1.qkv", "lm_head", "layers.2.mlp_in")
    assert weights(plan, *named) == ["int4-g32", "int4-plane-g64", "int4-g64", "e4m3-plane", "int4-g128"]
    assert [plan.held_by(store, layer) for layer in named] == [True, True, False, True, False]
    assert plan.formats == ("int4-plane-g64", "int4-g128", "int4-g64", "int4-g32", "e4m3-plane")


@pytest.mark.parametrize(
    ("method", "overrides", "label"),
    [
        ("int4", "lm_head=none", "int4 (g64, emulated; lm_head=none)"),
        ("none", "lm_head=int8,layers.0.*=none", "none (fp32; lm_head=int8 emulated, layers.0.*=none)"),
        ("w8a8", "lm_head=none", "w8a8 (emulated; lm_head=none)"),
    ],
)
def test_the_label_shows_overrides_and_emulation(method: str, overrides: str, label: str) -> None:
    assert verify_plan(method, overrides).label == label


def test_a_real_default_has_no_empty_note() -> None:
    assert draft_plan("w8a8", "lm_head=none", verify=verify_plan()).label == "w8a8 (lm_head=none)"
    assert draft_plan("w8a8", verify=verify_plan()).label == "w8a8"


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_globs_that_match_nothing_are_named_with_layers_that_exist() -> None:
    with pytest.raises(InvalidInput) as caught:
        verify_plan("none", "lm_heads=int8,lm_head=int8,model.*=none")
    said = [(violation.field, violation.description) for violation in caught.value.violations]
    assert [field for field, _ in said] == ["verify_overrides"] * 2
    assert said[0][1].startswith("'lm_heads' matches no linear layer; there are: layers.0.qkv, ")
    assert said[1][1].startswith("'model.*' matches no linear layer")
    assert all(text.endswith("lm_head") and len(text) < 300 for _, text in said)
    with pytest.raises(InvalidInput, match=r"draft_overrides: 'layers\.12\.\*' matches no linear layer"):
        draft_plan("w8a8", "layers.12.*=none", verify=verify_plan())


def test_plans_need_no_tensor_library() -> None:
    code = "import qspec.quant.method_plan, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
