"""Pairs with integer weights, both engines in one process: the text is the verifier's own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("triton")

from benchmarks.gpu.in_process import named_model, pair_over
from qspec.config import StackConfig
from qspec.errors import ModelError
from qspec.interfaces import Sampling
from qspec.models.converted import ConvertedModel

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(420)]

SAMPLINGS = {"greedy": Sampling(), "seeded": Sampling(temperature=0.8, top_p=0.95, seed=7)}
PAIRS = {
    "int8": ("fp8", "fp8:plane-a8", "w8a8", "int8"),
    "int8:nibbles": ("int4:plane", "w4a8:plane"),
    "int4:g64": ("w4a8",),
}
TOKENS = 48


def quiet(_text: str, _share: float | None) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def model() -> Iterator[ConvertedModel]:
    name = os.environ.get("QSPEC_TEST_MODEL", "smollm2")
    try:
        yield named_model(name, 1, quiet)
    except ModelError as error:
        pytest.skip(f"NOT TESTED WITHOUT A MODEL: {error} (QSPEC_TEST_MODEL names one)")


def settings(model: ConvertedModel, draft: str, verify: str) -> StackConfig:
    return StackConfig(
        model=str(model.directory), device="cuda", draft_quantization=draft, verify_quantization=verify, max_slots=4,
        kv_tokens=4096, max_draft_length=4)


@pytest.mark.parametrize("verify", PAIRS)
def test_texts_are_the_verifiers_own(model: ConvertedModel, verify: str) -> None:
    plain: dict[str, list[list[int]]] = {}
    for draft in PAIRS[verify]:
        with pair_over(model, settings(model, draft, verify), quiet) as pair:
            for name, sampling in SAMPLINGS.items():
                if name not in plain:
                    plain[name] = [pair.texts([each])[0] for each in pair.sequences(4, TOKENS, 0, sampling)]
                sequences = pair.sequences(4, TOKENS, 4, sampling)
                assert pair.texts(sequences) == plain[name], (draft, name)
                drafted, accepted = (
                    sum(getattr(each.stats, count) for each in sequences) for count in ("drafted", "accepted"))
                print(f"{draft} for {verify}, {name}: {accepted / drafted:.3f} accepted")
                assert accepted > (0.5 if verify == "int8" else 0.2) * drafted
    print(repr(pair.tokenizer.decode(plain["greedy"][0])))
