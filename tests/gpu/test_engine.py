"""Both engines on a GPU, in one process: texts do not depend on speculation, on the batch or on chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu.in_process import Pair, named_model, pair_over
from qspec.config import StackConfig
from qspec.engine.linears import PlainLinear
from qspec.errors import ModelError
from qspec.interfaces import AcceptanceRule, Sampling
from qspec.models.converted import ConvertedModel
from qspec.models.decoder import Decoder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(420)]

SAMPLINGS = {
    "greedy": Sampling(), "seeded": Sampling(temperature=0.8, top_p=0.95, seed=7),
    "whole": Sampling(temperature=1.0, seed=8), "filtered": Sampling(temperature=1.0, top_k=50, min_p=0.02, seed=9),
}
TOKENS = 64
Texts = dict[str, list[list[int]]]


def quiet(_text: str, _share: float | None) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module", params=[1, 7], ids=["smollm2", "widened"])
def model(request: pytest.FixtureRequest) -> ConvertedModel:
    """The default model, or the one that ``QSPEC_TEST_MODEL`` names, and it widened to 5.6 billion parameters."""
    name = os.environ.get("QSPEC_TEST_MODEL", "smollm2")
    try:
        return named_model(name, request.param, quiet)
    except ModelError as error:
        pytest.skip(f"NOT TESTED WITHOUT A MODEL: {error} (QSPEC_TEST_MODEL names one)")


def settings(model: ConvertedModel, **changes: Any) -> StackConfig:
    return StackConfig(**{
        "model": str(model.directory), "device": "cuda", "draft_quantization": "fp8:plane",
        "verify_quantization": "none", "max_slots": 4, "kv_tokens": 4096, "max_draft_length": 4, **changes})


@pytest.fixture(scope="module")
def pair(model: ConvertedModel) -> Iterator[Pair]:
    with pair_over(model, settings(model), quiet) as pair:
        yield pair


@pytest.fixture(scope="module")
def plain(pair: Pair) -> Texts:
    """Each prompt by itself, without drafts."""
    return {
        name: [pair.texts([sequence])[0] for sequence in pair.sequences(4, TOKENS, 0, sampling)]
        for name, sampling in SAMPLINGS.items()
    }


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("k", [0, 1, 4])
def test_text_does_not_depend_on_speculation_or_batch(pair: Pair, plain: Texts, sampling: str, k: int) -> None:
    sequences = pair.sequences(4, TOKENS, k, SAMPLINGS[sampling])
    assert pair.texts(sequences) == plain[sampling]
    if k:
        drafted, accepted = (sum(getattr(each.stats, name) for each in sequences) for name in ("drafted", "accepted"))
        print(f"{sampling}, k = {k}: {accepted / drafted:.3f} accepted")
        assert accepted > 0.5 * drafted
    print(repr(pair.tokenizer.decode(plain[sampling][0])))


def test_text_does_not_depend_on_chunks_or_on_graphs(
    model: ConvertedModel, plain: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSPEC_GPU_GRAPHS", "0")
    with pair_over(model, settings(model, max_batch_rows=20), quiet) as other:
        for name, sampling in SAMPLINGS.items():
            assert other.texts(other.sequences(4, TOKENS, 4, sampling)) == plain[name]


@pytest.mark.parametrize("name", ["seeded", "whole", "filtered"])
def test_the_host_draws_the_same_text(pair: Pair, plain: Texts, name: str) -> None:
    """Who is told log-probabilities is drawn for on the host, by the reference: kernels agree with it."""
    sequences = pair.sequences(4, TOKENS, 0, replace(SAMPLINGS[name], logprobs=0))
    assert pair.texts(sequences) == plain[name]


def test_warm_up_is_in_the_budget_and_decoding_adds_little(pair: Pair) -> None:
    def graphs() -> int:
        return sum(item.bytes for item in pair.verifier.describe().memory if "CUDA graphs" in item.name)

    before, count = graphs(), pair.graphs
    pair.texts(pair.sequences(2, 24, 4, SAMPLINGS["whole"]))
    print(f"{count} graphs, {before / 1e6:.0f} MB in the verifier; then {pair.graphs}, {graphs() / 1e6:.0f} MB")
    assert count > 20
    assert before > 0
    assert graphs() < before + (200 << 20)


def test_quantised_activations_draft_for_the_same_text(model: ConvertedModel, plain: Texts) -> None:
    with pair_over(model, settings(model, draft_quantization="fp8:plane-a8"), quiet) as other:
        sequences = other.sequences(4, TOKENS, 4, SAMPLINGS["greedy"])
        assert other.texts(sequences) == plain["greedy"]
        drafted, accepted = (sum(getattr(each.stats, name) for each in sequences) for name in ("drafted", "accepted"))
        print(f"{accepted / drafted:.3f} accepted")
        assert accepted > 0.5 * drafted


def test_rejection_sampling_ends(pair: Pair) -> None:
    sampling = Sampling(temperature=1.0, seed=3, rule=AcceptanceRule.REJECTION)
    sequences = pair.sequences(4, TOKENS, 4, sampling)
    assert all(len(text) == TOKENS for text in pair.texts(sequences))
    drafted, accepted = (sum(getattr(each.stats, name) for each in sequences) for name in ("drafted", "accepted"))
    assert accepted > 0.4 * drafted


def test_logits_are_those_of_fp32(model: ConvertedModel, pair: Pair) -> None:
    token_ids = pair.sequences(1, 1, 0, Sampling())[0].prompt[:40]
    cached = pair.verifier.cached_decoder(num_blocks=1)
    ours = cached.score(token_ids, 64)
    with model.open_layers() as layers:
        tensors = {name: layers.tensors[name].cuda().float() for name in layers.tensors}
    linears = {name: PlainLinear(tensor, tensors.get(f"{name}.bias")) for name, tensor in tensors.items()
               if tensor.ndim == 2 and name not in ("embed", "position_embed")}
    torch.backends.cuda.matmul.allow_tf32 = False
    decoder = Decoder(model.config, tensors, linears, 64)
    decoder._cos, decoder._sin = decoder._cos.cuda(), decoder._sin.cuda()

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *(each.transpose(0, 1)[None] for each in (q, k, v)), is_causal=True, enable_gqa=True)
        return mixed[0].transpose(0, 1).flatten(1)

    positions = torch.arange(len(token_ids), device="cuda")
    with torch.inference_mode():
        hidden = decoder.hidden(torch.tensor(token_ids, device="cuda"), positions, attend)
        exact = decoder.logits(hidden).cpu()
    error = float((ours - exact).norm() / exact.norm())
    same = float((ours.argmax(-1) == exact.argmax(-1)).float().mean())
    print(f"relative error of the logits {error:.1e}, {same:.1%} of the tokens equal")
    assert error < 0.02
    assert same >= 0.9
