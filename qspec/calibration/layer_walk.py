"""Running a model over calibration texts layer by layer, while its weights are being replaced.

Each linear layer is shown the inputs that it will meet in use: those that the layers before it make once they are
quantised. Only sums over the inputs are kept, and one layer's replaced weights at a time: beside the model, memory
holds the hidden states of the texts and one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qspec.evaluation.scoring import WholeText
from qspec.models.config import DecoderConfig
from qspec.models.decoder import Decoder, Rotary, linear_names
from qspec.quant.gptq import input_products

_BATCH_TOKENS = 2048
"""Texts are run together up to so many tokens."""
_WHOLE_TEXT = WholeText()


@dataclass(slots=True)
class InputStatistics:
    """What calibration knows of a layer's inputs."""

    products: Tensor
    """``Σ x xᵀ``, ``[in, in]`` float64."""
    magnitudes: Tensor
    """``Σ |x|``, ``[in]`` float64."""
    tokens: int = 0

    @classmethod
    def nothing(cls, inputs: int) -> InputStatistics:
        """Before the first input."""
        return cls(torch.zeros(inputs, inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Count inputs ``[tokens, in]``."""
        self.products += input_products(x)
        self.magnitudes += x.abs().sum(0).double()
        self.tokens += x.shape[0]

    @property
    def mean_magnitudes(self) -> Tensor:
        """Mean absolute value of each input, ``[in]`` fp32."""
        return (self.magnitudes / max(self.tokens, 1)).float()


class ObservedLinear:
    """``x @ weight + bias``, whose weight ``[in, out]`` can be replaced and whose inputs can be counted."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.statistics: InputStatistics | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.statistics is not None:
            self.statistics.add(x)
        y = x @ self.weight
        return y if self.bias is None else y.add_(self.bias)


@dataclass(slots=True)
class _Batch:
    """Some texts, one after the other."""

    lengths: list[int]
    hidden: Tensor
    """``[tokens, H]``: what the next half of a layer reads."""
    rotary: Rotary | None


@dataclass(frozen=True, slots=True)
class Half:
    """Attention, MLP or the head of a model: linear layers of which each reads what the one before makes."""

    names: tuple[str, ...]
    _linears: Mapping[str, ObservedLinear]
    _run: Callable[[bool], None]

    def observe(self, *names: str) -> dict[str, InputStatistics]:
        """The inputs of some of the layers, as the weights are now."""
        for name in names:
            self._linears[name].statistics = InputStatistics.nothing(self._linears[name].weight.shape[0])
        self._run(False)
        found = {}
        for name in names:
            statistics = self._linears[name].statistics
            assert statistics is not None
            found[name], self._linears[name].statistics = statistics, None
        return found

    def advance(self) -> None:
        """Move the texts on to the next half."""
        self._run(True)


class LayerWalk:
    """Calibration texts on their way through a model.

    ``tensors``: the canonical tensors (``qspec.models.config``). Norms and biases are copied and may be changed in
    place in ``small``, linear layers replaced in ``linears``, as long as the texts have not passed them.
    """

    def __init__(self, config: DecoderConfig, tensors: Mapping[str, Tensor], texts: list[tuple[int, ...]]) -> None:
        names = linear_names(config)
        self._config = config
        self.small = {name: tensors[name].clone() for name in tensors if tensors[name].dim() == 1}
        """Norms and biases by canonical name."""
        self.linears = {name: ObservedLinear(tensors[name], self.small.get(f"{name}.bias")) for name in names}
        """All linear layers by canonical name."""
        large = {name: tensors[name] for name in tensors if name not in self.small}
        self._decoder = Decoder(config, {**large, **self.small}, self.linears, max(map(len, texts)))
        self._batches = [self._enter(batch) for batch in _batches(texts)]

    def hidden(self) -> list[Tensor]:
        """What the next half reads, ``[tokens, H]`` for each batch of texts."""
        return [batch.hidden for batch in self._batches]

    def halves(self) -> Iterator[Half]:
        """The halves in the order of their use; the caller moves the texts on before it asks for the next."""
        for index in range(self._config.num_layers):
            prefix = f"layers.{index}."
            yield self._half((prefix + "qkv", prefix + "attention_out"), partial(self._attention, index))
            yield self._half((prefix + "mlp_in", prefix + "mlp_out"), partial(self._mlp, index))
        yield self._half(("lm_head",), self._head)

    def _half(self, names: tuple[str, ...], block: Callable[[_Batch], Tensor]) -> Half:
        def run(move_on: bool) -> None:
            for batch in self._batches:
                result = block(batch)
                if move_on:
                    batch.hidden = result

        return Half(names, self.linears, run)

    def _attention(self, index: int, batch: _Batch) -> Tensor:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _attend_each(layer, q, k, v, batch.lengths)

        return self._decoder.attention_block(index, batch.hidden, batch.rotary, attend)

    def _mlp(self, index: int, batch: _Batch) -> Tensor:
        return self._decoder.mlp_block(index, batch.hidden)

    def _head(self, batch: _Batch) -> Tensor:
        # Logits are not needed, and those of all texts would be larger than the model.
        if (statistics := self.linears["lm_head"].statistics) is not None:
            statistics.add(self._decoder.head_input(batch.hidden))
        return batch.hidden

    def _enter(self, texts: list[tuple[int, ...]]) -> _Batch:
        tokens = torch.tensor([token for text in texts for token in text])
        positions = torch.tensor([position for text in texts for position in range(len(text))])
        return _Batch([len(text) for text in texts], *self._decoder.embed(tokens, positions))


def _batches(texts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for text in texts:
        if batch and sum(map(len, batch)) + len(text) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def _attend_each(layer: int, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """``WholeText`` for several texts, one after the other in the rows."""
    texts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_WHOLE_TEXT(layer, *text) for text in texts])
