"""The linear layers of a converted model in a worker's format: codes that came with the model, or made from fp32."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor

from qspec.models.converted import ConvertedModel
from qspec.models.mapped_tensors import MappedTensors
from qspec.quant.codecs import CODECS
from qspec.quant.weight_formats import is_held_by


class LayerWeights:
    """A context manager over the files of a converted model; what is taken out stays valid. Treat it as read-only."""

    def __init__(self, model: ConvertedModel) -> None:
        self._formats = model.stored
        self.tensors: MappedTensors = model.open_weights()
        """The canonical fp32 tensors by name."""
        self._stored: MappedTensors | None = model.open_stored() if model.stored else None

    def is_stored(self, name: str, weights_format: str) -> bool:
        """Whether layer ``name`` came with the model in ``weights_format``, or in one that this is a plane of."""
        return name in self._formats and is_held_by(weights_format, self._formats[name])

    def parts(self, name: str, weights_format: str) -> dict[str, Tensor]:
        """The parts of layer ``name`` in ``weights_format`` (``qspec.quant.codecs``).

        ``InvalidInput`` naming the layer when its inputs cannot be grouped; ``KeyError`` when there is no such layer.
        """
        codec = CODECS[weights_format]
        if self._stored is not None and self.is_stored(name, weights_format):
            return {part: self._stored[f"{name}.{part}"] for part in codec.part_names}
        return codec.encode(self.tensors[name].t(), name)

    def tell_stored(self, names: list[str], weights_format: str) -> str | None:
        """One line for people on how many of the layers came in ``weights_format``; None when none did."""
        count = sum(self.is_stored(name, weights_format) for name in names)
        if not count:
            return None
        return f"{count} of {len(names)} layers take their {weights_format} codes from the checkpoint"

    def __enter__(self) -> LayerWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tensors.__exit__(kind, error, trace)
        if self._stored is not None:
            self._stored.__exit__(kind, error, trace)
