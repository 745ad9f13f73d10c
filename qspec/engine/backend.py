"""What a worker computes with, found out once, and how much of the machine: the answers of all workers agree.

Both workers of a stack come to the same answer because both ask here, with one configuration and one model.
"""

from __future__ import annotations

from qspec.config import StackConfig
from qspec.device import configured_backend
from qspec.errors import InvalidInput
from qspec.interfaces import Progress
from qspec.kernels.native.loading import NativeUnavailable, instruction_sets, load
from qspec.models.config import DecoderConfig, Positions
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend
from qspec.quant.native_formats import has_native_kernel


def machine_backend() -> Backend:
    """The best backend of this machine."""
    return Backend.CPU if _native_absence() else Backend.CPU_NATIVE


def describe_backend(backend: Backend) -> str:
    """For people: what computes, and why not the native kernels."""
    if backend is Backend.CPU_NATIVE:
        return f"{backend.value} ({', '.join(instruction_sets())})"
    return f"{backend.value}, torch's operations ({_native_absence()})"


def check_machine(config: StackConfig, progress: Progress) -> None:
    """``InvalidInput`` where ``config`` demands a GPU or native kernels and the machine has none.

    May wait for the GPU's turn to start CUDA.
    """
    reason = _native_absence()
    if config.kernels == "native" and reason is not None:
        raise InvalidInput.field("kernels", reason)
    if config.device == "cuda":
        from qspec.engine.gpu_support import machine_absence
        from qspec.engine.gpu_turn import gpu_start

        with gpu_start(progress):
            absence = machine_absence()
        if absence is not None:
            raise InvalidInput.field("device", absence)


def choose_backend(config: StackConfig, model: DecoderConfig, progress: Progress) -> Backend:
    """The backend that ``config.device`` and ``config.kernels`` mean for a model; why it is not the best one is told
    through ``progress``.

    ``InvalidInput`` where a GPU or native kernels are demanded and there are none, or none for the model.
    """
    if configured_backend(config) is Backend.CUDA:
        from qspec.engine.gpu_support import gpu_absence
        from qspec.engine.gpu_turn import gpu_start

        with gpu_start(progress):
            absence = gpu_absence(model)
        if absence is None:
            return Backend.CUDA
        if config.device == "cuda":
            raise InvalidInput.field("device", absence)
        progress(f"{absence}; the CPU is used", None)
    if config.kernels == "torch":
        return Backend.CPU
    reason = _native_absence()
    if reason is None and model.positions is Positions.ROTARY and model.head_dim % 2:
        reason = f"no native kernels for rotary positions in an odd head dimension ({model.head_dim})"
    if reason is None:
        return Backend.CPU_NATIVE
    if config.kernels == "native":
        raise InvalidInput.field("kernels", reason)
    progress(f"{reason}; torch's operations are used", None)
    return Backend.CPU


def tell_fallback(worker: str, chosen: Backend, plan: MethodPlan, progress: Progress) -> None:
    """One line where a worker cannot run on the native kernels that the process has."""
    if chosen is Backend.CPU_NATIVE and plan.backend is not chosen:
        lacking = dict.fromkeys(
            f"{choice.variant.weights} weights with {choice.variant.activations} activations"
            for choice in plan.layers.values()
            if not has_native_kernel(choice.variant.weights, choice.variant.activations)
        )
        progress(f"the {worker} runs on torch's operations: no native kernel for {', '.join(lacking)}", None)


def _native_absence() -> str | None:
    """Why there are no native kernels, and what helps; None where there are."""
    try:
        load()
    except NativeUnavailable as error:
        return str(error)
    return None
