"""Quantised speculative decoding: the core that drafter, verifier and coordinator share. Imports no service.

The Python API (``qspec.api``) is exported here and loaded when one of its names is first used (PEP 562), because it
brings torch along, and ``import qspec`` must not; nor must it bring what the client's own distribution leaves out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    from qspec.constraint import Constraint, ConstraintKind

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
    "Constraint": "qspec.constraint",
    "ConstraintKind": "qspec.constraint",
    "QSPECModel": "qspec.api.qspec_model",
    "QuantizationMethod": "qspec.api.quantization_method",
    "QuantizedModel": "qspec.api.quantized_model",
    "autoregressive_sampling": "qspec.api.sampling_functions",
    "qspec_sampling": "qspec.api.sampling_functions",
    "qspec_sampling_different_models": "qspec.api.sampling_functions",
    "speculative_sampling": "qspec.api.sampling_functions",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
