"""The quantisation methods, as data (no torch here, so that a client can check a name before anything is started).

A method is a weight format and an activation format, and for each backend what there is for it: a *real* kernel, a
*faithful emulation* (right numbers, no gain) or nothing. Asking for what is not there is an error that lists what is;
nothing falls back to another precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from qspec.errors import InvalidInput

NO_DRAFTER = "off"
"""Draft "method" of a stack that decodes without a drafter."""


class Backend(Enum):
    """Where a model runs."""

    CPU = "cpu"


class Support(Enum):
    """What a backend has for a method."""

    REAL = "real"
    EMULATED = "emulated"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One quantisation method."""

    name: str
    weights: str
    """Weight format."""
    activations: str
    """Activation format."""
    bits_per_weight: float
    """Bits that a forward pass reads per weight."""
    draft: Mapping[Backend, Support] = field(default_factory=dict)
    """What each backend has for drafting."""
    verify: Mapping[Backend, Support] = field(default_factory=dict)
    """What each backend has for verifying."""


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="none", weights="fp32", activations="fp32", bits_per_weight=32,
            draft={Backend.CPU: Support.REAL}, verify={Backend.CPU: Support.REAL},
        ),
        Method(
            name="w8a8", weights="int8 per output channel", activations="int8 per token", bits_per_weight=8,
            draft={Backend.CPU: Support.REAL},
        ),
        Method(name="int8", weights="int8 per output channel", activations="as stored", bits_per_weight=8),
        Method(name="int4", weights="int4 in groups", activations="as stored", bits_per_weight=4),
        Method(name="fp8", weights="e4m3 per row", activations="e4m3 per token", bits_per_weight=8),
        Method(name="fp4", weights="e2m1 in blocks", activations="e2m1 in blocks", bits_per_weight=4),
        Method(name="w4a8", weights="int4 in groups", activations="int8 or e4m3 per token", bits_per_weight=4),
    )
}
"""All methods by name."""


def check_draft_method(name: str, backend: Backend) -> Method | None:
    """The drafter's method; None for ``off``. Unknown or absent on ``backend``: ``InvalidInput``."""
    return None if name == NO_DRAFTER else _check("draft_quantization", name, backend)


def check_verify_method(name: str, backend: Backend) -> Method:
    """The verifier's method. Unknown or absent on ``backend``: ``InvalidInput``."""
    return _check("verify_quantization", name, backend)


def _check(role: str, name: str, backend: Backend) -> Method:
    def support(method: Method) -> Support:
        table = method.draft if role == "draft_quantization" else method.verify
        return table.get(backend, Support.ABSENT)

    available = [method.name for method in METHODS.values() if support(method) is not Support.ABSENT]
    if role == "draft_quantization":
        available.append(NO_DRAFTER)
    remedy = f"choose one of: {', '.join(available)}"
    if name not in METHODS:
        raise InvalidInput.field(role, f"unknown method {name!r}; {remedy}")
    if support(METHODS[name]) is Support.ABSENT:
        raise InvalidInput.field(role, f"{name} has no kernel on {backend.value}; {remedy}")
    return METHODS[name]
