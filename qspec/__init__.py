"""Quantised speculative decoding: the core that drafter, verifier and coordinator share. Imports no service.

The Python API (``qspec.api``) is exported here and loaded when one of its names is first used (PEP 562), because it
brings torch along, and ``import qspec`` must not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qspec.constraint import Constraint as Constraint
from qspec.constraint import ConstraintKind as ConstraintKind

if TYPE_CHECKING:
    from qspec.api.qspec_model import QSPECModel
    from qspec.api.quantization_method import QuantizationMethod
    from qspec.api.quantized_model import QuantizedModel
    from qspec.api.sampling_functions import (
        autoregressive_sampling,
        qspec_sampling,
        qspec_sampling_different_models,
        speculative_sampling,
    )

__all__ = [
    "Constraint",
    "ConstraintKind",
    "QSPECModel",
    "QuantizationMethod",
    "QuantizedModel",
    "autoregressive_sampling",
    "qspec_sampling",
    "qspec_sampling_different_models",
    "speculative_sampling",
]

_MODULES = {
    "QSPECModel": "qspec_model",
    "QuantizationMethod": "quantization_method",
    "QuantizedModel": "quantized_model",
    "autoregressive_sampling": "sampling_functions",
    "qspec_sampling": "sampling_functions",
    "qspec_sampling_different_models": "sampling_functions",
    "speculative_sampling": "sampling_functions",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"qspec.api.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
