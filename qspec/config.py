"""Configuration of a stack: frozen, validated once, the source of every command-line default."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from qspec.errors import FieldViolation, InvalidInput

DEFAULT_MODEL = "smollm2"
"""Alias of the model that is used when none is named (``qspec.models.resolve``)."""


def cache_directory() -> Path:
    """Where converted models are kept: ``$QSPEC_CACHE_DIR``, ``$XDG_CACHE_HOME/qspec`` or ``~/.cache/qspec``."""
    if explicit := os.environ.get("QSPEC_CACHE_DIR"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qspec"


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What drafter, verifier and coordinator of one stack agree on."""

    model: str = DEFAULT_MODEL
    """Alias, local directory, GGUF file or hub id."""
    draft_quantization: str = "w8a8"
    """The drafter's method, ``METHOD`` or ``METHOD:VARIANT``, or ``off`` for plain decoding without a drafter."""
    verify_quantization: str = "none"
    """The verifier's method, ``METHOD`` or ``METHOD:VARIANT``; the text is exactly that of this method."""
    draft_overrides: str = ""
    """Other methods for single linear layers of the drafter: ``GLOB=METHOD,…`` over names such as ``lm_head``,
    ``layers.3.qkv`` and ``layers.*.mlp_out``; the last match wins (``qspec.quant.overrides``)."""
    verify_overrides: str = ""
    """The same for the verifier; the text is exactly that of these methods."""
    max_slots: int = 16
    """Sequences that can run at once."""
    max_draft_length: int = 8
    """Longest draft per sequence and round."""
    max_model_len: int = 0
    """Most positions of a sequence; 0 takes the smaller of the model's own limit and the KV cache."""
    kv_tokens: int = 8192
    """Positions in the KV cache, all sequences together."""
    block_size: int = 64
    """Positions per KV block; also the fixed split of attention."""
    max_batch_rows: int = 512
    """Most rows in one verify batch; longer prompts are prefilled in chunks."""
    threads: int = 0
    """CPU threads per worker; 0 takes what the process may use."""

    def __post_init__(self) -> None:
        minimum = {"max_slots": 1, "max_draft_length": 0, "max_model_len": 0, "kv_tokens": 1, "block_size": 1,
                   "max_batch_rows": 1, "threads": 0}
        violations = [
            FieldViolation(name, f"must be at least {low}, got {getattr(self, name)}")
            for name, low in minimum.items()
            if getattr(self, name) < low
        ]
        if self.kv_tokens < self.block_size:
            violations.append(FieldViolation("kv_tokens", f"must hold at least one block of {self.block_size}"))
        if self.max_batch_rows < self.max_slots:
            violations.append(FieldViolation("max_batch_rows", f"must be at least max_slots ({self.max_slots})"))
        if violations:
            raise InvalidInput(*violations)

    @classmethod
    def default_of(cls, name: str) -> object:
        """The default of one field, for command-line parsers."""
        return next(f.default for f in fields(cls) if f.name == name)
