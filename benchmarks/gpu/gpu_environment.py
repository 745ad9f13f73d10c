"""Where a measurement on a GPU was made: the machine's description with the GPU, its driver and its libraries."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.environment import describe_environment


def describe_gpu_environment() -> dict[str, Any]:
    """JSON-able; what cannot be found out is None."""
    about = {**describe_environment(), "gpu": None, "driver": None, "torch_cuda": torch.version.cuda,
             "triton": _version("triton")}
    if torch.cuda.is_available():
        about |= {"gpu": torch.cuda.get_device_name(), "driver": _driver()}
    return about


def _driver() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    pynvml.nvmlInit()
    try:
        found = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    return found if isinstance(found, str) else str(found, "utf-8")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
