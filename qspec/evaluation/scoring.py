"""Logits of whole texts by a model whose linear layers have any methods, each layer its own.

The workers keep an emulated weight in its format and dequantise it in every call, which is what sharing and honest
memory figures need and what measuring does not: here a weight is decoded once and kept as fp32, and only activations go
through their format in every call. The product is the same one, ``quantised(x) @ decoded weightᵀ``
(``qspec.kernels.emulated_linear``), so the figures are those of the workers. ``w8a8`` runs the very kernel that drafts
with it.

A layer is made once and may stand in several decoders: of two models that differ in one layer, all others are shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qspec.engine.linears import PlainLinear, is_packed, is_plain
from qspec.engine.weights import weight_regions
from qspec.errors import InvalidInput
from qspec.evaluation.agreement import NO_AGREEMENT, Agreement, compare_logits
from qspec.interfaces import Progress
from qspec.kernels.emulated_linear import EmulatedLinear
from qspec.kernels.int8_linear import Int8Linear, has_kernel
from qspec.models.converted import ConvertedModel
from qspec.models.decoder import Decoder, Linear, linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.quant.activations import ACTIVATIONS
from qspec.quant.codecs import CODECS
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Choice, Support


def numbers(choice: Choice) -> tuple[str, str]:
    """Formats of weights and activations: two choices that have the same compute the same (kernels aside)."""
    return choice.variant.weights, choice.variant.activations


class ScoredModel:
    """A converted model to build decoders from."""

    def __init__(self, model: ConvertedModel) -> None:
        self.model = model
        self.layer_names = linear_names(model.config)
        self._layers, self._int8 = LayerWeights(model), model.open_int8()
        self._weights = self._layers.tensors

    def layer(self, name: str, choice: Choice, decoded: Tensor | None = None) -> Linear:
        """One linear layer under a method; ``decoded`` is its weight in the method's format where that is at hand.

        ``InvalidInput`` naming the layer when it cannot be cut into groups.
        """
        bias = self._weights.get(name + ".bias")
        if is_packed(choice) and choice.support is Support.REAL and has_kernel():
            return Int8Linear(self._int8[f"{name}.codes"], self._int8[f"{name}.scales"], bias)
        if is_plain(choice):
            return PlainLinear(self._weights[name], bias)
        weight = self.decoded(name, choice.variant.weights) if decoded is None else decoded
        return EmulatedLinear(lambda: weight, bias, ACTIVATIONS[choice.variant.activations], tiles=None)

    def decoded(self, name: str, weights: str) -> Tensor:
        """The fp32 weight ``[out, in]`` that a layer stands for in format ``weights``, its own codes if it came so.

        Raises as ``layer``.
        """
        inputs, outputs = self._weights.shape(name)
        CODECS[weights].shapes(outputs, inputs, name)  # the error that a worker would raise
        return CODECS[weights].decode(self._layers.parts(name, weights))

    def misfit(self, weights: str) -> str | None:
        """Why the model's linear layers cannot be stored in format ``weights``; None when they can."""
        try:
            for name in self.layer_names:
                self.layer_bytes(name, weights)
        except InvalidInput as error:
            return str(error)
        return None

    def layers(self, choices: Mapping[str, Choice], progress: Progress | None = None) -> dict[str, Linear]:
        """The linear layers of ``choices``, layer name to method."""
        layers: dict[str, Linear] = {}
        for index, (name, choice) in enumerate(choices.items()):
            layers[name] = self.layer(name, choice)
            if progress is not None:
                progress(f"preparing {choice.variant.weights} weights", (index + 1) / len(choices))
        return layers

    def uniform(self, choice: Choice) -> dict[str, Choice]:
        """Every linear layer under one method."""
        return dict.fromkeys(self.layer_names, choice)

    def decoder(self, layers: Mapping[str, Linear], positions: int) -> Decoder:
        """The model over ``layers``, one for each of ``layer_names``, for texts of at most ``positions``.

        ``InvalidInput`` when the model knows fewer positions.
        """
        if positions > self.model.config.max_position:
            most = self.model.config.max_position
            raise InvalidInput.field("texts", f"one is {positions} tokens long, and the model knows {most} positions")
        return Decoder(self.model.config, self._weights, layers, positions, row_invariant=False)

    def logits(self, layers: Mapping[str, Linear], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """``text_logits`` of every text over ``layers``. A vocabulary of 49,152 makes 200 MB of a thousand tokens."""
        decoder = self.decoder(layers, max(map(len, texts)))
        return [text_logits(decoder, text) for text in texts]

    def agreement(
        self, layers: Mapping[str, Linear], texts: Sequence[Sequence[int]], targets: Sequence[Tensor]
    ) -> Agreement:
        """What ``layers`` and a target whose logits are ``targets``, one for each of ``texts``, agree on."""
        decoder = self.decoder(layers, max(map(len, texts)))
        return sum(
            (compare_logits(text_logits(decoder, text), target) for text, target in zip(texts, targets, strict=True)),
            NO_AGREEMENT,
        )

    def layer_bytes(self, name: str, weights: str) -> int:
        """Size of one layer's stored weight in format ``weights``, scales included; biases are not."""
        inputs, outputs = self._weights.shape(name)
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in CODECS[weights].shapes(
            outputs, inputs, name).values())

    def store_bytes(self, choice: Choice) -> int:
        """What a verifier's store holds under ``choice``: linear layers, embeddings, norms and biases."""
        shapes = {name: self._weights.shape(name) for name in self._weights}
        plan = MethodPlan(choice, (), dict.fromkeys(self.layer_names, choice))
        return sum(region.spec.bytes for region in weight_regions(self.model.config, shapes, plan))


class WholeText:
    """Attention of one text over itself, all positions at once (the decoder's ``Attention``); keeps no cache."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q`` ``[rows, heads, D]``, ``k``, ``v`` ``[rows, kv_heads, D]``: ``[rows, heads·D]``, causal."""
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0),
            is_causal=True, enable_gqa=q.shape[1] != k.shape[1],
        )
        return mixed[0].transpose(0, 1).reshape(len(q), -1)


@torch.inference_mode()
def text_logits(decoder: Decoder, token_ids: Sequence[int]) -> Tensor:
    """Logits of what follows every position of one text, each position given those before it: ``[tokens, V]``."""
    tokens = torch.tensor(token_ids, dtype=torch.int64)
    return decoder.logits(decoder.hidden(tokens, torch.arange(len(tokens)), WholeText()))


def first_positions(texts: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
    """The first texts, the last of them cut so that they have ``most`` tokens together; none of a single token."""
    kept, left = [], most
    for text in texts:
        if min(len(text), left) < 2:
            break
        kept.append(text[:left])
        left -= len(kept[-1])
    return kept
