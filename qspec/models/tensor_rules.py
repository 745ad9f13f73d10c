"""How tensors of a checkpoint become canonical tensors, as data.

A family (``qspec.models.families``) lists ``TensorRule``s; ``plan`` instantiates them for one model. Every canonical
tensor is the concatenation, along its last axis, of one or more stored tensors, each transposed first where the
checkpoint keeps a linear weight as ``[out, in]``. A stored shape is written in ``Dim``s, so that a checkpoint that
does not fit its own configuration is refused before anything is computed. Names are those of the Hugging Face
checkpoints; ``{i}`` stands for the layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from qspec.errors import ModelError
from qspec.models.config import DecoderConfig


class Dim(Enum):
    """A length that follows from the configuration."""

    HIDDEN = "hidden"
    QUERIES = "heads·D"
    KEYS = "kv_heads·D"
    QKV = "(heads + 2·kv_heads)·D"
    INTERMEDIATE = "intermediate"
    HEAD = "D"
    VOCAB = "vocabulary"
    POSITIONS = "positions"


class Feature(Enum):
    """What a configuration may switch on, and a rule may need."""

    ALWAYS = "always"
    TIED = "tied"
    UNTIED = "untied"
    QKV_BIAS = "qkv_bias"
    ATTENTION_OUT_BIAS = "attention_out_bias"
    MLP_BIAS = "mlp_bias"


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor and its shape in the checkpoint."""

    name: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One canonical tensor: its parts, transposed each if ``transpose``, joined along the last axis."""

    target: str
    parts: tuple[Part, ...]
    transpose: bool = False
    needs: Feature = Feature.ALWAYS


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that a checkpoint must contain."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A rule applied to one model and layer: ``shape`` is that of the canonical tensor."""

    target: str
    parts: tuple[StoredTensor, ...]
    transpose: bool
    shape: tuple[int, ...]

    @property
    def quantizable(self) -> bool:
        """Whether this is a linear weight, which a method may quantise: every matrix but the look-up tables."""
        return len(self.shape) == 2 and self.target not in ("embed", "position_embed")


def linear(
    target: str, names: Sequence[tuple[str, Dim]], inputs: Dim, bias: Feature | None = None
) -> tuple[TensorRule, ...]:
    """Rules of a linear layer whose parts are stored as ``{name}.weight [out, in]`` and ``{name}.bias [out]``."""
    weight = TensorRule(target, tuple(Part(f"{name}.weight", (out, inputs)) for name, out in names), transpose=True)
    return (weight, *_bias_rule(target, names, bias))


def transposed_linear(target: str, name: str, inputs: Dim, out: Dim) -> tuple[TensorRule, ...]:
    """Rules of GPT-2's ``Conv1D``: stored as ``[in, out]`` already, always with a bias."""
    weight = TensorRule(target, (Part(f"{name}.weight", (inputs, out)),))
    return (weight, *_bias_rule(target, ((name, out),), Feature.ALWAYS))


def _bias_rule(target: str, names: Sequence[tuple[str, Dim]], bias: Feature | None) -> tuple[TensorRule, ...]:
    if bias is None:
        return ()
    return (TensorRule(f"{target}.bias", tuple(Part(f"{name}.bias", (out,)) for name, out in names), needs=bias),)


def rms_norm(target: str, name: str, size: Dim = Dim.HIDDEN) -> tuple[TensorRule, ...]:
    """Rule of a norm that has a weight only."""
    return (TensorRule(target, (Part(f"{name}.weight", (size,)),)),)


def layer_norm(target: str, name: str) -> tuple[TensorRule, ...]:
    """Rules of a norm with weight and bias."""
    return (*rms_norm(target, name), TensorRule(f"{target}.bias", (Part(f"{name}.bias", (Dim.HIDDEN,)),)))


def plan(rules: Sequence[TensorRule], config: DecoderConfig, features: Collection[Feature]) -> tuple[TensorPlan, ...]:
    """The canonical tensors of one model, layer by layer, with the stored tensors that each is made of."""
    dims = _lengths(config)
    plans = []
    for rule in rules:
        if rule.needs is not Feature.ALWAYS and rule.needs not in features:
            continue
        for layer in range(config.num_layers) if "{i}" in rule.target else (0,):
            stored = tuple(
                StoredTensor(part.name.replace("{i}", str(layer)), tuple(dims[dim] for dim in part.shape))
                for part in rule.parts
            )
            shapes = [part.shape[::-1] if rule.transpose else part.shape for part in stored]
            joined = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
            plans.append(TensorPlan(rule.target.replace("{i}", str(layer)), stored, rule.transpose, joined))
    return tuple(plans)


def _lengths(config: DecoderConfig) -> dict[Dim, int]:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        Dim.HIDDEN: config.hidden_size,
        Dim.QUERIES: queries,
        Dim.KEYS: keys,
        Dim.QKV: queries + 2 * keys,
        Dim.INTERMEDIATE: config.intermediate_size,
        Dim.HEAD: config.head_dim,
        Dim.VOCAB: config.vocab_size,
        Dim.POSITIONS: config.max_position,
    }


def check_stored_tensors(
    plans: Sequence[TensorPlan], shapes: dict[str, tuple[int, ...]], ignored: Sequence[str]
) -> None:
    """Refuse a checkpoint that lacks a tensor, has one of another shape, or has one that nothing would read.

    Args:
        plans: what the model needs.
        shapes: name and shape of everything in the checkpoint.
        ignored: patterns (whole names) of stored buffers that carry no weights.
    """
    expected = {part.name: part.shape for entry in plans for part in entry.parts}
    if missing := sorted(expected.keys() - shapes.keys()):
        raise ModelError(f"the checkpoint lacks {_some(missing)}; download or convert it again")
    wrong = [
        f"{name} is {list(shapes[name])}, the configuration says {list(shape)}"
        for name, shape in expected.items()
        if shapes[name] != shape
    ]
    if wrong:
        raise ModelError(f"the checkpoint does not fit its configuration: {_some(wrong)}")
    unread = sorted(
        name for name in shapes.keys() - expected.keys() if not any(re.fullmatch(pattern, name) for pattern in ignored)
    )
    if unread:
        raise ModelError(
            f"the checkpoint has tensors that this architecture does not: {_some(unread)}; "
            "merge adapters into the model and save it without extra heads"
        )


def _some(names: Sequence[str], limit: int = 3) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
