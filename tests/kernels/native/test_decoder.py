"""Whole native steps against the torch decoder, and a row's bits over chunks, batches, threads and tails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.errors import ContractViolation, InvalidInput
from qspec.kernels.native import instruction_sets
from qspec.kernels.native.decoder import DraftRow, NativeDecoder, SequenceRows
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights
from qspec.models.config import DecoderConfig
from qspec.models.decoder import linear_names
from qspec.quant.codecs import CODECS
from tests.models.quiet import prepare_quietly
from tests.models.test_logits import load_decoder, run
from tests.tiny_models import FAMILIES, write_tiny_model

BLOCK = 16
BLOCKS = [7, 3, 9, 1, 0, 11, 5]
"""A block table that is neither adjacent nor ascending."""
POSITIONS = 100
TOLERANCE = 5e-5


class Model:
    """A tiny model's tensors and layers, its weights in one format."""

    def __init__(self, directory: Path, weight_format: str = "fp32", activations: str = "fp32") -> None:
        converted = prepare_quietly(directory)
        self.torch_decoder = load_decoder(converted)
        self.config: DecoderConfig = converted.config
        stored = converted.open_weights()
        self.tensors = {name: stored[name] for name in stored.keys()}  # noqa: SIM118  (no mapping of torch's)
        self.layers = {}
        for name in linear_names(self.config):
            weight = self.tensors[name].t().contiguous()
            parts = CODECS[weight_format].encode(weight, name) if weight_format != "fp32" else {"": weight}
            contiguous = {part: tensor.contiguous() for part, tensor in parts.items()}
            self.layers[name] = LayerWeights(weight_format, contiguous, activations, self.tensors.get(f"{name}.bias"))

    def native(self, threads: int = 1, instruction_set: str | None = None) -> NativeDecoder:
        pool = Threads(threads, bind=False)
        return NativeDecoder(
            self.config, self.tensors, self.layers, 128, pool, instruction_set=instruction_set
        )

    def cache(self) -> tuple[Tensor, Tensor]:
        """Blocks full of NaN: what was not written must not be read."""
        config = self.config
        shape = (config.num_layers, 12, config.num_kv_heads, BLOCK, config.head_dim)
        return torch.full(shape, torch.nan), torch.full(shape, torch.nan)

    def tails(self) -> tuple[Tensor, Tensor]:
        config = self.config
        shape = (config.num_layers, 4, config.num_kv_heads, 9, config.head_dim)
        return torch.full(shape, torch.nan), torch.full(shape, torch.nan)


def token_ids(seed: int = 1) -> list[int]:
    return torch.randint(3, 300, (POSITIONS,), generator=torch.Generator().manual_seed(seed)).tolist()


def in_chunks(decoder: NativeDecoder, cache: tuple[Tensor, Tensor], tokens: list[int], sizes: list[int]) -> Tensor:
    parts, start = [], 0
    for size in sizes:
        parts.append(decoder.verify_rows([SequenceRows(tokens[start : start + size], start, BLOCKS)], *cache))
        start += size
    return torch.cat(parts)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose layers every format can hold."""
    directory = tmp_path_factory.mktemp("wide")
    write_tiny_model(directory, "llama_wide")
    yield directory


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_torch_and_with_itself(family: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, family)
    model, tokens = Model(tmp_path), token_ids()
    expected = run(model.torch_decoder, torch.tensor(tokens), [POSITIONS])
    results = []
    for instruction_set in instruction_sets():
        for threads in (1, 2):
            decoder = model.native(threads, instruction_set)
            for sizes in ([100], [1] * 100, [5] * 20, [40, 60], [7] * 14 + [2]):
                hidden = in_chunks(decoder, model.cache(), tokens, sizes)
                results.append(decoder.logits(hidden))
                assert decoder.greedy(hidden) == results[-1].argmax(-1).tolist()
    assert (results[0] - expected).abs().max() < TOLERANCE
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen3", "gpt2"])
def test_a_draft_step_has_the_bits_of_verification(family: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, family)
    model, tokens = Model(tmp_path), token_ids()
    for threads in (1, 2):
        decoder, cache, tails = model.native(threads), model.cache(), model.tails()
        hidden = in_chunks(decoder, cache, tokens, [POSITIONS])
        for context in (0, 1, 15, 16, 63, 64, 70):
            for step in range(9):
                token, blocks = tokens[context + step], BLOCKS[: -(-context // BLOCK)]
                rows = [DraftRow(token, context, blocks, slot) for slot in (2, 0)]
                drafted = decoder.draft_step(rows, step, *cache, *tails)
                assert torch.equal(drafted, hidden[context + step].expand(2, -1))


@pytest.mark.parametrize(("weight_format", "activations"), [
    ("fp16-planes", "fp32"), ("e4m3-plane", "fp32"), ("e4m3-plane", "e4m3 per token"), ("int8-row", "int8 per token"),
    ("int8-nibbles-g64", "fp32"), ("int4-g32-asymmetric", "fp32"), ("nf4-g64", "fp32"), ("int4-g64", "int8 per token"),
])  # fmt: skip
def test_a_row_has_the_same_bits_in_every_batch(weight_format: str, activations: str, wide: Path) -> None:
    model = Model(wide, weight_format, activations)
    first, second = token_ids(1), token_ids(2)
    alone = in_chunks(model.native(), model.cache(), first, [POSITIONS])
    for instruction_set in instruction_sets():
        decoder, cache = model.native(2, instruction_set), model.cache()
        beside = SequenceRows(second[:13], 0, [2, 4])
        long = decoder.verify_rows([beside, SequenceRows(first[:60], 0, BLOCKS)], *cache)
        assert torch.equal(long[13:], alone[:60])
        few = decoder.verify_rows([SequenceRows(first[60:65], 60, BLOCKS), SequenceRows([9], 13, [2, 4])], *cache)
        assert torch.equal(few[:5], alone[60:65])


def test_greedy_takes_the_first_of_equals_and_the_first_nan(wide: Path) -> None:
    model = Model(wide)
    head = model.layers["lm_head"].parts[""]
    for threads in (1, 2):
        decoder = model.native(threads)
        hidden = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(5))
        logits = decoder.logits(hidden)
        assert decoder.greedy(hidden) == logits.argmax(-1).tolist()
        winner, runner_up = logits[0].topk(2).indices.tolist()
        before = head.clone()
        head[runner_up] = head[winner]
        assert decoder.greedy(hidden)[0] == min(winner, runner_up)
        for words in ([7], [300, 11], [319]):
            head[words] = torch.nan
            assert decoder.greedy(hidden) == [min(words)] * 3
            head.copy_(before)
        head.zero_()
        assert decoder.greedy(hidden) == [0, 0, 0]
        head.fill_(-torch.inf)
        assert decoder.greedy(hidden) == decoder.logits(hidden).argmax(-1).tolist()
        head.copy_(before)


def test_tied_embeddings_are_read_from_the_planes(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "smollm2")
    planes, plain = Model(tmp_path, "fp16-planes"), Model(tmp_path)
    for name, layer in planes.layers.items():
        plain.layers[name] = LayerWeights("fp32", {"": CODECS["fp16-planes"].decode(layer.parts)}, bias=layer.bias)
    results = [in_chunks(model.native(), model.cache(), token_ids(), [POSITIONS]) for model in (planes, plain)]
    assert torch.equal(*results)


def test_what_does_not_exist_is_refused(wide: Path) -> None:
    model = Model(wide)
    decoder, cache, tails = model.native(), model.cache(), model.tails()
    for rows, message in (
        (SequenceRows([320], 0, [0]), "outside the vocabulary"),
        (SequenceRows([-1], 0, [0]), "outside the vocabulary"),
        (SequenceRows([5] * 17, 0, [0]), "shorter than its context"),
        (SequenceRows([5], 3, [12]), "a block does not exist"),
        (SequenceRows([5], 128, [0] * 9), "max_positions"),
        (SequenceRows([], 0, [0]), "do not follow"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.verify_rows([rows], *cache)
    for row, step, message in (
        (DraftRow(5, 10, [0], 4), 0, "a slot does not exist"),
        (DraftRow(5, 10, [0], 0), 9, "end of the tail"),
        (DraftRow(5, 17, [0], 0), 0, "shorter than its context"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.draft_step([row], step, *cache, *tails)
    with pytest.raises(ContractViolation, match="a cache is"):
        decoder.verify_rows([SequenceRows([5], 0, [0])], cache[0].double(), cache[1].double())
    with pytest.raises(ContractViolation, match="not contiguous"):
        strided = (tensor.transpose(3, 4).contiguous().transpose(3, 4) for tensor in cache)
        decoder.verify_rows([SequenceRows([5], 0, [0])], *strided)
    assert all(bool(tensor.isnan().all()) for tensor in (*cache, *tails))
    assert decoder.verify_rows([], *cache).shape == (0, model.config.hidden_size)


def test_layers_of_another_shape_are_refused(wide: Path) -> None:
    model = Model(wide)
    model.layers["layers.1.qkv"] = model.layers["layers.1.mlp_out"]
    with pytest.raises(ContractViolation, match=r"layers\.1\.qkv is"):
        model.native()
    model.layers["layers.1.qkv"] = LayerWeights("nf4", {})
    with pytest.raises(InvalidInput, match=r"layers\.1\.qkv: has no native kernel for nf4"):
        model.native()
