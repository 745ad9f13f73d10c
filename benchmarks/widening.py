"""A model that computes what another one does with a multiple of its width: something large to measure on.

Small models are bound by launches and caches; large ones need downloads. *Widening* by a factor f repeats every unit f
times: the residual stream, attention heads, the MLP. Copies are in **copy-major order** (``[copy][unit]``), which keeps
the mapping of grouped-query attention: query head c·heads + h reads key head c·kv_heads + h // group.

Each copy of an output sums over all copies of the inputs, so its weights are ``W / f``. Left at that, all blocks of the
matrix would be equal, and caches and rounding would see another model than they should; so noise N is added, of
standard deviation ``std(W) / f``, that sums to zero over the copies of each input and so changes nothing but
rounding. Embeddings, norms and biases are repeated (a mean, or a mean square, over copies is that of one), ``lm_head``
keeps its outputs and is a matrix of its own. Noise three times as large loses the function to the rounding of fp16.

The idea is that of Net2Net's wider layers (Chen et al., arXiv 1511.05641, section 2.1). What a widened model accepts
is its own affair: figures taken on one have to say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qspec.models.config import DecoderConfig

VERSION = 1
"""Raised whenever the same factor and seed give another model."""


def widen_config(config: DecoderConfig, factor: int) -> DecoderConfig:
    """The architecture ``factor`` times as wide: more heads of the same size, and ``lm_head`` a matrix of its own."""
    return replace(
        config,
        hidden_size=config.hidden_size * factor,
        num_heads=config.num_heads * factor,
        num_kv_heads=config.num_kv_heads * factor,
        intermediate_size=config.intermediate_size * factor,
        tied_embeddings=False,
    )


def widened_fingerprint(fingerprint: str, factor: int, seed: int, device: torch.device) -> str:
    """Identifies a widened model: every device has noise of its own."""
    return hashlib.sha256(f"{fingerprint}|widened|{VERSION}|{factor}|{seed}|{device.type}".encode()).hexdigest()


class WidenedTensors(Mapping[str, Tensor]):
    """The canonical tensors (``qspec.models.config``) of a widened model, each made when it is taken: never stored.

    ``tensors`` and ``config`` are the original's; noise is drawn on ``device``, where the tensors are made, from
    ``seed`` and the tensor's name.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], config: DecoderConfig, factor: int, *, seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if factor < 1:
            raise ValueError(f"a model cannot be widened by {factor}")
        self.config = widen_config(config, factor)
        self._tensors, self._original, self._factor, self._seed = tensors, config, factor, seed
        self.device = torch.device(device)

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        if self._original.tied_embeddings:
            yield "embed"

    def __len__(self) -> int:
        return len(self._tensors) + self._original.tied_embeddings

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, contiguous fp32; ``KeyError`` when there is none of that name."""
        if name == "embed" and self._original.tied_embeddings:
            return _repeat(self._tensors["lm_head"].to(self.device).t(), self._factor)
        tensor = self._tensors[name].to(self.device)
        kind = name.rpartition(".")[2] if name.startswith("layers.") else name
        if kind in ("q_norm", "k_norm"):
            return tensor
        segments = _output_segments(self._original, name)
        if tensor.ndim == 1:  # norms and biases
            return torch.cat([_repeat(part, self._factor) for part in tensor.split(segments or len(tensor))])
        if kind in ("embed", "position_embed"):
            return _repeat(tensor, self._factor)
        source = torch.Generator(self.device).manual_seed(_seed_of(name, self._seed))
        outputs = 1 if name == "lm_head" else self._factor
        widen = partial(widen_weight, factor=self._factor, output_copies=outputs, source=source)
        return torch.cat([widen(part) for part in tensor.split(segments or tensor.shape[1], dim=1)], dim=1)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without making it."""
        factor = self._factor
        if name == "embed" and self._original.tied_embeddings:
            hidden, vocabulary = self._tensors["lm_head"].shape
            return vocabulary, hidden * factor
        shape = self._tensors[name].shape
        if name.endswith(("q_norm", "k_norm")):
            return tuple(shape)
        if len(shape) == 1:
            return (shape[0] * factor,)
        first = 1 if name in ("embed", "position_embed") else factor
        last = 1 if name == "lm_head" else factor
        return shape[0] * first, shape[1] * last


def widen_weight(weight: Tensor, factor: int, output_copies: int, source: torch.Generator) -> Tensor:
    """A weight ``[in, out]`` as ``[factor · in, output_copies · out]``: ``W / factor`` and noise without effect."""
    inputs, outputs = weight.shape
    noise = torch.randn(
        factor, inputs, output_copies, outputs, generator=source, device=weight.device, dtype=weight.dtype)
    noise -= noise.mean(dim=0, keepdim=True)
    noise *= float(weight.std()) / factor if weight.numel() > 1 else 0.0
    noise += (weight / factor).unsqueeze(1)
    return noise.view(factor * inputs, output_copies * outputs)


def _repeat(tensor: Tensor, factor: int) -> Tensor:
    """Copies of the last dimension, one after the other."""
    return torch.cat([tensor] * factor, dim=-1)


def _output_segments(config: DecoderConfig, name: str) -> list[int] | None:
    """Lengths of what lies side by side in the outputs of a layer and is widened each for itself; None: one thing."""
    layer = name.removesuffix(".bias").rpartition(".")[2]
    if layer == "qkv":
        keys = config.num_kv_heads * config.head_dim
        return [config.num_heads * config.head_dim, keys, keys]
    if layer == "mlp_in" and config.gated_mlp:
        return [config.intermediate_size] * 2
    return None


def _seed_of(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:7], "little")
