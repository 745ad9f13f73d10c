"""From a Hugging Face ``config.json`` to a ``DecoderConfig``.

Both spellings of rotary settings are read: ``rope_parameters`` (transformers 5) and ``rope_theta`` with
``rope_scaling`` (before). Whatever would change the computation and is not supported is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.errors import ModelError
from qspec.models.config import Activation, DecoderConfig, Positions, RopeScaling
from qspec.models.families import FamilySpec
from qspec.models.tensor_rules import Feature

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


class _Record:
    """A ``config.json`` read by Llama's key names, with a family's spelling and defaults."""

    def __init__(self, spec: FamilySpec, record: Mapping[str, Any]) -> None:
        self._spec, self._record = spec, record

    def get(self, key: str) -> Any:
        """The value, the family's default, or None."""
        value = self._record.get(self._spec.config_keys.get(key, key))
        return self._spec.defaults.get(key) if value is None else value

    def stated(self, key: str) -> Any:
        """Like ``get``, but a key that is there with null stays None (null switches a feature off)."""
        return self._record[key] if key in self._record else self._spec.defaults.get(key)

    def count(self, key: str, fallback: int | None = None) -> int:
        """A positive integer."""
        value = self.get(key)
        value = fallback if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            name = self._spec.config_keys.get(key, key)
            raise ModelError(f"config.json: {name} must be a positive integer, got {value!r}")
        return value

    def number(self, key: str) -> float:
        """A positive number."""
        return _positive(key, self.get(key))


def decoder_config(spec: FamilySpec, record: Mapping[str, Any]) -> DecoderConfig:
    """The architecture that ``record`` (a parsed ``config.json``) describes."""
    _refuse_unsupported(spec, record)
    values = _Record(spec, record)
    hidden, heads = values.count("hidden_size"), values.count("num_attention_heads")
    activation = _ACTIVATIONS.get(values.get("hidden_act"))
    if activation is not spec.activation:
        raise ModelError(f"activation {values.get('hidden_act')!r} is not supported for the {spec.name} family")
    kv_heads = values.count("num_key_value_heads", heads) if spec.positions is Positions.ROTARY else heads
    if heads % kv_heads or (values.get("head_dim") is None and hidden % heads):
        raise ModelError(f"config.json: {heads} heads fit neither hidden_size {hidden} nor {kv_heads} key-value heads")
    theta, scaling = _rope(values, record) if spec.positions is Positions.ROTARY else (10000.0, None)
    intermediate = values.count("intermediate_size", None if spec.gated_mlp else 4 * hidden)
    return DecoderConfig(
        family=spec.name,
        vocab_size=values.count("vocab_size"),
        hidden_size=hidden,
        num_layers=values.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=values.count("head_dim", hidden // heads) if spec.positions is Positions.ROTARY else hidden // heads,
        intermediate_size=intermediate,
        max_position=min(values.count("max_position_embeddings"), _window(values)),
        norm=spec.norm,
        norm_eps=values.number("rms_norm_eps"),
        activation=activation,
        gated_mlp=spec.gated_mlp,
        positions=spec.positions,
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=spec.qk_norm,
        tied_embeddings=bool(values.get("tie_word_embeddings")),
    )


def features(spec: FamilySpec, record: Mapping[str, Any]) -> frozenset[Feature]:
    """What ``record`` switches on, for ``tensor_rules.plan``."""
    values = _Record(spec, record)
    found = {Feature.TIED if values.get("tie_word_embeddings") else Feature.UNTIED}
    if values.get("attention_bias"):
        found |= {Feature.QKV_BIAS, Feature.ATTENTION_OUT_BIAS}
    if values.get("mlp_bias"):
        found.add(Feature.MLP_BIAS)
    return frozenset(found)


def _refuse_unsupported(spec: FamilySpec, record: Mapping[str, Any]) -> None:
    for key, supported in spec.required_values.items():
        if record.get(key, supported) != supported:
            raise ModelError(f"config.json: {key}={record[key]!r} is not supported (only {supported!r})")


def _window(values: _Record) -> int:
    """Positions up to which attention is full in every layer.

    A sliding window of W lets a token see itself and the W-1 before it: while the whole context fits in W positions,
    that is plain causal attention. So a model with a window is served up to its window, exactly, and not beyond.
    """
    window = values.stated("sliding_window")
    if window is None or not values.get("use_sliding_window"):
        return 2**31
    layer_types = values.get("layer_types")
    if layer_types is not None:
        return int(window) if "sliding_attention" in layer_types else 2**31
    return int(window) if values.get("max_window_layers") < values.count("num_hidden_layers") else 2**31


def _rope(values: _Record, record: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    settings = {**(record.get("rope_scaling") or {}), **(record.get("rope_parameters") or {})}
    theta = _positive("rope_theta", settings.get("rope_theta", values.get("rope_theta")))
    partial = settings.get("partial_rotary_factor", record.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ModelError(f"config.json: partial_rotary_factor={partial!r} is not supported (only 1.0)")
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"config.json: rope_type {kind!r} is not supported (only 'default' and 'llama3')")
    original = settings.get("original_max_position_embeddings") or values.count("max_position_embeddings")
    scaling = RopeScaling(
        factor=_positive("rope factor", settings.get("factor")),
        low_freq_factor=_positive("low_freq_factor", settings.get("low_freq_factor")),
        high_freq_factor=_positive("high_freq_factor", settings.get("high_freq_factor")),
        original_max_position=int(original),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ModelError("config.json: high_freq_factor must be larger than low_freq_factor")
    return theta, scaling


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {name} must be a positive number, got {value!r}")
    return float(value)
