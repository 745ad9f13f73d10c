"""Configuration of a stack: frozen, validated once, the source of every command-line default."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from qspec.errors import FieldViolation, InvalidInput
from qspec.quant.methods import AUTO

DEFAULT_MODEL = "smollm2"
"""Alias of the model that is used when none is named (``qspec.models.resolve``)."""
KERNELS = ("auto", "native", "torch")
"""What ``StackConfig.kernels`` can be."""
DEVICES = ("auto", "cpu", "cuda")
"""What ``StackConfig.device`` can be."""


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
    draft_quantization: str = AUTO
    """The drafter's method, ``METHOD`` or ``METHOD:VARIANT``; ``off`` for plain decoding without a drafter; ``auto``
    for the one that promises most beside the verifier's on this machine."""
    verify_quantization: str = AUTO
    """The verifier's method, ``METHOD`` or ``METHOD:VARIANT``; the text is exactly that of this method. ``auto`` is
    ``none``, the model unquantised, in the dtype that is fastest on this machine."""
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
    max_prefill_s: float = 0.1
    """Most seconds that entering prompts may add to a round in which other texts go on; a few tokens are entered
    whatever they cost. inf enters as many as max_batch_rows lets in, and keeps those texts waiting meanwhile."""
    prefix_cache: bool = True
    """Whether KV blocks are kept as long as there is room, and used again for texts that begin alike."""
    threads: int = 0
    """CPU threads per worker; 0 takes what the process may use."""
    kernels: str = "auto"
    """What computes on a CPU: ``native`` kernels (an error where there are none), ``torch``'s operations, or ``auto``:
    the native ones where there are some."""
    device: str = "auto"
    """Where the model runs: ``cpu``, ``cuda`` (the first visible NVIDIA GPU), or ``auto``: a GPU that can be used, if
    there is one."""

    def __post_init__(self) -> None:
        minimum = {"max_slots": 1, "max_draft_length": 0, "max_model_len": 0, "kv_tokens": 1, "block_size": 1,
                   "max_batch_rows": 1, "max_prefill_s": 0, "threads": 0}
        violations = [
            FieldViolation(name, f"must be at least {low}, got {getattr(self, name)}")
            for name, low in minimum.items()
            if not getattr(self, name) >= low
        ]
        if self.kv_tokens < self.block_size:
            violations.append(FieldViolation("kv_tokens", f"must hold at least one block of {self.block_size}"))
        if self.max_batch_rows < self.max_slots:
            violations.append(FieldViolation("max_batch_rows", f"must be at least max_slots ({self.max_slots})"))
        if self.kernels not in KERNELS:
            known = ", ".join(KERNELS)
            violations.append(FieldViolation("kernels", f"must be one of {known}, got {self.kernels!r}"))
        if self.device not in DEVICES:
            known = ", ".join(DEVICES)
            violations.append(FieldViolation("device", f"must be one of {known}, got {self.device!r}"))
        elif self.device == "cuda" and self.kernels != "auto":
            violations.append(FieldViolation("kernels", f"{self.kernels} ones are for a CPU; leave it out with cuda"))
        if violations:
            raise InvalidInput(*violations)

    def settled(self, *, draft: str, verify: str) -> StackConfig:
        """With these methods in the place of ``auto``."""
        return replace(
            self,
            draft_quantization=draft if self.draft_quantization == AUTO else self.draft_quantization,
            verify_quantization=verify if self.verify_quantization == AUTO else self.verify_quantization,
        )

    @classmethod
    def default_of(cls, name: str) -> object:
        """The default of one field, for command-line parsers."""
        return next(f.default for f in fields(cls) if f.name == name)
