"""Decoder steps of a model's shape, timed on the native kernels before any weight is loaded.

The bytes of the weights decide how long a step takes, not their values, so one block of memory stands for the weights
of every format in turn. A step runs whole (norms, attention and ``lm_head`` too) on the threads that will decode. Calls
of one format move on through the block, so that small formats are not read from the processor's cache either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qspec.engine.native_forward import native_layer
from qspec.errors import InvalidInput
from qspec.kernels.native.decoder import NativeDecoder, SequenceRows
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights
from qspec.memory.layout import ArenaLayout, RegionSpec, region_bytes
from qspec.models.config import DecoderConfig, Norm, Positions
from qspec.models.decoder import linear_shapes
from qspec.pair_choice import Kind
from qspec.quant.codecs import CODECS

SECONDS = 1.0
"""For everything."""
_MOST_WEIGHTS = 150_000_000
"""Weights of the sample; a larger model is timed by some of its layers, and the figures are scaled."""
_CALLS = 3
_MOST_PLACES = 4
"""Places in the block that the calls of one format take in turn."""
_FILL = 0x3D
"""Every byte: an ordinary number in every format (0.046 in fp32, 1.3 in fp16); no sum is denormal or infinite."""
_BLOCK_SIZE = 64


def measure_step_times(
    model: DecoderConfig, wanted: Mapping[Kind, tuple[int, ...]], threads: Threads, *, least: int,
    seconds: float = SECONDS,
) -> dict[Kind, dict[int, float]]:
    """Seconds of a step for each kind of weights and activations and each ``wanted`` number of rows.

    Kinds are timed in the order given, ``least`` of them in any case and then while the ``seconds`` last. Those that
    were not timed are missing, and so are those that do not fit the model (groups that do not divide a layer's inputs).
    """
    stop = time.perf_counter() + seconds
    sample = _sample(model)
    scale = _weights(model) / _weights(sample)
    shapes = linear_shapes(sample)
    layouts = {each: layout for each in wanted if (layout := _layout(each[0], shapes)) is not None}
    block = torch.full((max((layout.size for layout in layouts.values()), default=0),), _FILL, dtype=torch.uint8)
    tensors, positions = _small_tensors(sample), min(_BLOCK_SIZE, sample.max_position)
    cache = (sample.num_layers, 1, sample.num_kv_heads, _BLOCK_SIZE, sample.head_dim)
    keys, values = torch.zeros(cache), torch.zeros(cache)
    found: dict[Kind, dict[int, float]] = {}
    for index, (each, layout) in enumerate(layouts.items()):
        if index >= least and time.perf_counter() > stop:
            break
        decoders = [
            NativeDecoder(sample, tensors, layers, positions, threads)
            for layers in _placed(each, layout, block)
        ]

        def step(call: int, rows: int, decoders: list[NativeDecoder] = decoders) -> None:
            decoder = decoders[call % len(decoders)]
            decoder.greedy(decoder.verify_rows([SequenceRows([0] * rows, 0, (0,))], keys, values))

        found[each] = {}
        for rows in wanted[each]:
            taken = []
            for call in range(_CALLS):
                started = time.perf_counter()
                step(call, rows)
                taken.append(time.perf_counter() - started)
                if time.perf_counter() > stop:
                    break
            found[each][rows] = scale * min(taken)
    return found


def _sample(model: DecoderConfig) -> DecoderConfig:
    """The model, or if it is large some of its layers, and of its vocabulary."""
    vocab = min(model.vocab_size, max(1, _MOST_WEIGHTS // 3 // model.hidden_size))
    layer = _weights(replace(model, num_layers=1, vocab_size=0))
    layers = min(model.num_layers, max(1, (_MOST_WEIGHTS - vocab * model.hidden_size) // layer))
    return replace(model, num_layers=layers, vocab_size=vocab, tied_embeddings=True)


def _weights(model: DecoderConfig) -> int:
    """Weights that a step multiplies with."""
    return sum(outputs * inputs for outputs, inputs in linear_shapes(model).values())


def _layout(weights: str, shapes: Mapping[str, tuple[int, int]]) -> ArenaLayout | None:
    """Where all layers in a format lie, their parts as ``LAYER/PART``; None where it does not fit one of them."""
    try:
        return ArenaLayout.place([
            RegionSpec(f"{name}/{part}", dtype, shape)
            for name, (outputs, inputs) in shapes.items()
            for part, (dtype, shape) in CODECS[weights].shapes(outputs, inputs, name).items()
        ])
    except InvalidInput:
        return None


def _placed(each: Kind, layout: ArenaLayout, block: Tensor) -> Iterator[dict[str, LayerWeights]]:
    """All layers over bytes of the block, in as many places as it has."""
    weights, activations = each
    for place in range(min(_MOST_PLACES, len(block) // layout.size)):
        parts: dict[str, dict[str, Tensor]] = {}
        for region in layout.regions:
            at = place * layout.size + region.offset
            dtype: torch.dtype = getattr(torch, region.dtype)
            name, _, part = region.name.partition("/")
            parts.setdefault(name, {})[part] = (
                block[at : at + region_bytes(region)].view(dtype).view(region.shape))
        yield {name: native_layer(weights, stored, activations) for name, stored in parts.items()}


def _small_tensors(model: DecoderConfig) -> dict[str, Tensor]:
    """Norms and positions."""
    names = {"final_norm": model.hidden_size}
    for index in range(model.num_layers):
        names |= {f"layers.{index}.{name}": model.hidden_size for name in ("attention_norm", "mlp_norm")}
        if model.qk_norm:
            names |= {f"layers.{index}.{name}": model.head_dim for name in ("q_norm", "k_norm")}
    tensors = {name: torch.ones(size) for name, size in names.items()}
    if model.norm is Norm.LAYER:
        tensors |= {f"{name}.bias": torch.zeros(size) for name, size in names.items()}
    if model.positions is Positions.LEARNED:
        tensors["position_embed"] = torch.zeros(model.max_position, model.hidden_size)
    return tensors
