"""Which kind of device a stack is meant for, found out without torch: every process of a stack comes to one answer.

``auto`` means a GPU where there is one with the packages to use it and the methods that were named have kernels there.
Whether a model can run on it is for the workers to say (``qspec.engine.backend``).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from qspec.config import StackConfig
from qspec.errors import InvalidInput
from qspec.quant.method_plan import check_methods
from qspec.quant.methods import Backend, Role

PACKAGES = ("cuda.bindings", "pynvml", "triton")
"""What a GPU needs beside torch."""
_DRIVER = Path("/dev/nvidiactl")


def configured_backend(config: StackConfig) -> Backend:
    """``Backend.CUDA`` or ``Backend.CPU``, as ``config.device`` means on this machine."""
    if config.device != "auto":
        return Backend.CUDA if config.device == "cuda" else Backend.CPU
    if config.kernels != "auto" or not has_driver() or missing_packages():
        return Backend.CPU
    try:
        for role in Role:
            check_methods(config, role, Backend.CUDA)
    except InvalidInput:
        return Backend.CPU
    return Backend.CUDA


def has_driver() -> bool:
    """Whether NVIDIA's driver has a device here."""
    return _DRIVER.exists()


def missing_packages() -> list[str]:
    """Those of ``PACKAGES`` that cannot be imported."""
    return [name for name in PACKAGES if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it should be in
        return False
