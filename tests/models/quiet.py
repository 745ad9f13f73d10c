"""Conversion without a person watching."""

from __future__ import annotations

from pathlib import Path

from qspec.models.converted import ConvertedModel, prepare


def prepare_quietly(name: str | Path) -> ConvertedModel:
    """``prepare`` with progress thrown away."""
    return prepare(str(name), progress=lambda _text, _share: None)
