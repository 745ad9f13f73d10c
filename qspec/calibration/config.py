"""What a calibration is to do: frozen, and the source of every command-line default (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Algorithm(Enum):
    """How codes are chosen; the value is what users write."""

    GPTQ = "gptq"
    AWQ = "awq"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """What is to be made of what."""

    model: str
    """Alias, local directory, GGUF file or hub id."""
    output: Path
    """The directory to make."""
    calibration: Path
    """Texts (``qspec.evaluation.token_sequences``) like those that the model is to read and write."""
    method: str = "int4:g64"
    """METHOD or METHOD:VARIANT, of 4-bit integers in groups."""
    algorithm: Algorithm = Algorithm.GPTQ
    answer_tokens: int = 128
    """Prompts of a ``.jsonl`` file are answered by the model itself, up to so many tokens, and the answers calibrated
    on, too; 0 leaves them as they are."""
    longest: int = 1024
    """Tokens of a text that are seen together."""
