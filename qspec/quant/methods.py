"""The quantisation methods, as data (no torch here, so that a client can check a name before anything is started).

A method has *variants*: a weight format, an activation format, and for each backend and role what there is for it, a
*real* kernel, a *faithful emulation* (right numbers, no gain) or nothing. Asking for what is not there is an error that
lists what is; nothing falls back to another precision.

A name is written ``METHOD`` or ``METHOD:VARIANT``. Where a drafter's variant is not written, it is the first one whose
weights the verifier's store holds, so that one copy serves both; else the method's first; and on a GPU another one of
the same weights may draft for large batches (``Variant.batched``). Where a verifier's variant is
not written and the model came quantised, it is the first one with the weights that most of its layers have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from qspec.errors import InvalidInput
from qspec.quant.native_formats import NATIVE_WEIGHTS, has_native_kernel
from qspec.quant.weight_formats import WEIGHT_FORMATS, is_held_by

NO_DRAFTER = "off"
"""Draft "method" of a stack that decodes without a drafter."""
AUTO = "auto"
"""Either worker's "method" that stands for the one that pays on the machine at hand (``qspec.pair_choice``)."""


class Backend(Enum):
    """Where a model runs, and with what."""

    CPU = "cpu"
    """torch's operations."""
    CPU_NATIVE = "cpu-native"
    """The C++ kernels of ``qspec.kernels.native``. A worker runs on them as a whole, or not at all."""
    CUDA = "cuda"
    """The kernels of ``qspec.kernels.triton`` on an NVIDIA GPU. Nothing is emulated there."""


class Role(Enum):
    """What a method is used for; the value is the configuration's field."""

    DRAFT = "draft_quantization"
    VERIFY = "verify_quantization"


class Support(Enum):
    """What a backend has for a method."""

    REAL = "real"
    EMULATED = "emulated"
    ABSENT = "absent"


_EMULATED: Mapping[Backend, Mapping[Role, Support]] = {
    Backend.CPU: {Role.DRAFT: Support.EMULATED, Role.VERIFY: Support.EMULATED}
}
_REAL: Mapping[Backend, Mapping[Role, Support]] = {Backend.CPU: {Role.DRAFT: Support.REAL, Role.VERIFY: Support.REAL}}
_REAL_DRAFT: Mapping[Backend, Mapping[Role, Support]] = {
    Backend.CPU: {Role.DRAFT: Support.REAL, Role.VERIFY: Support.EMULATED}
}
_REAL_ON_GPU: Mapping[Backend, Mapping[Role, Support]] = {
    **_EMULATED, Backend.CUDA: {Role.DRAFT: Support.REAL, Role.VERIFY: Support.REAL}
}
_REAL_DRAFT_ON_GPU: Mapping[Backend, Mapping[Role, Support]] = {**_EMULATED, Backend.CUDA: {Role.DRAFT: Support.REAL}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of a method."""

    name: str
    """What is written behind the colon."""
    weights: str
    """Weight format (``qspec.quant.weight_formats``)."""
    activations: str = "fp32"
    """Activation format (``qspec.quant.activations``)."""
    support: Mapping[Backend, Mapping[Role, Support]] = field(default_factory=lambda: _EMULATED)
    """What each backend has for each role; for ``CPU_NATIVE`` that follows from the formats."""
    batched: str = ""
    """On a GPU, where the method is named without a variant: the one of the same weights that drafts for large batches,
    from a number of rows on that was measured for the GPU; empty: this one drafts for all."""
    row_invariant: bool = True
    """Whether the text of a verifier of this variant is the same, bit for bit, with and without speculation."""

    @property
    def bits_per_weight(self) -> float:
        """Bits that a forward pass reads per weight."""
        return WEIGHT_FORMATS[self.weights].bits_per_weight

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None: a whole row, or no scale."""
        return WEIGHT_FORMATS[self.weights].group_size

    def on(self, backend: Backend, role: Role) -> Support:
        """What ``backend`` has for ``role`` with the packages that are installed."""
        if not WEIGHT_FORMATS[self.weights].is_there:
            return Support.ABSENT
        if backend is Backend.CPU_NATIVE:
            return Support.REAL if has_native_kernel(self.weights, self.activations) else Support.EMULATED
        return self.support.get(backend, {}).get(role, Support.ABSENT)

    def stored_for(self, backend: Backend) -> Variant:
        """The variant with its weights as ``backend`` stores them."""
        if backend is not Backend.CPU_NATIVE or self.weights not in NATIVE_WEIGHTS:
            return self
        return replace(self, weights=NATIVE_WEIGHTS[self.weights])

    def absence(self, backend: Backend) -> str:
        """Why ``backend`` does not have it, for people."""
        described = WEIGHT_FORMATS[self.weights]
        if not described.is_there:
            return f"needs the package {described.package}, which is not installed"
        return f"has no kernel on {backend.value}"


@dataclass(frozen=True, slots=True)
class Method:
    """One quantisation method; the first variant is meant by the name alone."""

    name: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A method's variant that a worker is to use."""

    method: str
    variant: Variant
    support: Support
    """What the backend has for the role that it was chosen for."""
    batched: Variant | None = None
    """What takes the variant's place in large batches."""

    @property
    def label(self) -> str:
        """For people: the method, the variant where there are several, and whether it is emulated."""
        return self.labelled("")

    def labelled(self, note: str) -> str:
        """The label with one more note in its parentheses, if it is not empty."""
        several = len(METHODS[self.method].variants) > 1
        own = [self.variant.name] if several else []
        own += [] if self.batched is None else [f"{self.batched.activations} in large batches"]
        own += ["emulated"] if self.support is Support.EMULATED else []
        notes = "; ".join(filter(None, (", ".join(own), note)))
        return f"{self.method} ({notes})" if notes else self.method


def _grouped(sizes: tuple[int, ...], activations: str, *endings: str) -> tuple[Variant, ...]:
    """Variants over int4 weights in groups; a GPU's kernels know symmetric ones of 64 or a multiple."""
    weight_only = activations == "fp32"
    on_gpu = _REAL_ON_GPU if weight_only else _REAL_DRAFT_ON_GPU if activations == "int8 per token" else _EMULATED
    return tuple(
        Variant(
            name=f"g{size}{ending}", weights=f"int4-g{size}{ending}", activations=activations,
            support=_EMULATED if ending or size % 64 else on_gpu)
        for ending in endings
        for size in sizes
    )


def _of_bitsandbytes(activations: str) -> tuple[Variant, ...]:
    """Variants over the 4-bit formats of bitsandbytes."""
    return (
        Variant(name="nf4", weights="nf4-g64", activations=activations),
        Variant(name="fp4", weights="bnb-fp4-g64", activations=activations),
    )


_INT4_SIZES = (64, 32, 128)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("none", (
            Variant(name="fp32", weights="fp32", support=_REAL),
            Variant(name="fp16", weights="fp16-planes", support=_REAL_ON_GPU),
        )),
        Method("int8", (
            Variant(name="row", weights="int8-row", support=_REAL_ON_GPU),
            Variant(name="g64", weights="int8-g64", support=_REAL_ON_GPU),
            Variant(name="g32", weights="int8-g32"),
            Variant(name="g128", weights="int8-g128", support=_REAL_ON_GPU),
            Variant(name="nibbles", weights="int8-nibbles-g64", support=_REAL_ON_GPU),
        )),
        Method("int4", (
            *_grouped(_INT4_SIZES, "fp32", "", "-asymmetric"),
            *_grouped((32,), "fp32", "-minimum"),
            *_of_bitsandbytes("fp32"),
            Variant(name="plane", weights="int4-plane-g64", support=_REAL_ON_GPU),
        )),
        Method("fp8", (
            Variant(name="row", weights="e4m3-row", activations="e4m3 per token"),
            Variant(name="plane", weights="e4m3-plane", batched="plane-a8", support=_REAL_ON_GPU),
            Variant(
                name="plane-a8", weights="e4m3-plane", activations="e4m3 per token", support=_REAL_DRAFT_ON_GPU),
        )),
        Method("fp4", (
            Variant(name="nvfp4", weights="nvfp4", activations="nvfp4"),
            Variant(name="mxfp4", weights="mxfp4", activations="mxfp4"),
            *_grouped(_INT4_SIZES, "nvfp4", "", "-asymmetric"),
            *_grouped((32,), "nvfp4", "-minimum"),
        )),
        Method("w8a8", (
            Variant(
                name="row", weights="int8-row", activations="int8 per token",
                support={**_REAL_DRAFT_ON_GPU, **_REAL_DRAFT}),
        )),
        Method("w4a8", (
            *_grouped(_INT4_SIZES, "int8 per token", "", "-asymmetric"),
            *_grouped((32,), "int8 per token", "-minimum"),
            *_of_bitsandbytes("int8 per token"),
            Variant(name="g64-e4m3", weights="int4-g64", activations="e4m3 per token"),
            Variant(
                name="plane", weights="int4-plane-g64", activations="int8 per token", support=_REAL_DRAFT_ON_GPU),
        )),
    )
}
"""All methods by name."""


def most_stored(stored: Mapping[str, str]) -> tuple[str, ...]:
    """The weight format that most of a model's layers came in (``ConvertedModel.stored``), or nothing."""
    formats = Counter(stored.values())
    return (max(formats, key=formats.__getitem__),) if formats else ()


def choose_verify(name: str, backend: Backend, *, stored: Mapping[str, str] | None = None) -> Choice:
    """The verifier's choice. Unknown or absent on ``backend``: ``InvalidInput``.

    ``stored``: weight formats of the layers that the model came with (``ConvertedModel.stored``).
    """
    return choose_variant(name, Role.VERIFY, backend, stores=most_stored(stored or {}))


def choose_draft(name: str, backend: Backend, *, verify: Choice) -> Choice | None:
    """The drafter's choice beside that of the verifier; None for ``off``. Raises as ``choose_verify``."""
    return None if name == NO_DRAFTER else choose_variant(
        name, Role.DRAFT, backend, stores=(verify.variant.weights,)
    )


def check_draft_method(name: str, backend: Backend) -> None:
    """``InvalidInput`` when ``name`` is unknown or absent on ``backend``; ``auto`` and ``off`` are known."""
    if name not in (AUTO, NO_DRAFTER):
        choose_variant(name, Role.DRAFT, backend)


def check_verify_method(name: str, backend: Backend) -> None:
    """``InvalidInput`` when ``name`` is unknown or absent on ``backend``; ``auto`` is known."""
    if name != AUTO:
        choose_variant(name, Role.VERIFY, backend)


def choose_variant(
    name: str, role: Role, backend: Backend, *, stores: Sequence[str] = (), field: str | None = None
) -> Choice:
    """The choice that ``name`` means: without a variant, the first one whose weights a store of a format in ``stores``
    holds, the earlier stores before the later; else the method's first.

    Unknown or absent on ``backend``: ``InvalidInput`` of the configuration's ``field`` (the role's own if None).
    """
    method_name, colon, variant_name = name.partition(":")
    known = _available(role, backend, whole_worker=field is None)
    field = field or role.value
    if method_name not in METHODS:
        raise InvalidInput.field(field, f"unknown method {name!r}; choose one of: {known}")
    every = [variant.stored_for(backend) for variant in METHODS[method_name].variants]
    variants = [variant for variant in every if variant.on(backend, role) is not Support.ABSENT]
    if not variants:
        raise InvalidInput.field(field, f"{name} has no kernel on {backend.value}; choose one of: {known}")
    if colon:
        named = next((each for each in every if each.name == variant_name), None)
        if named is None or named not in variants:
            problem = f"unknown variant {name!r}" if named is None else f"{name} {named.absence(backend)}"
            known = ", ".join(f"{method_name}:{variant.name}" for variant in variants)
            raise InvalidInput.field(field, f"{problem}; choose one of: {known}")
        return Choice(method_name, named, named.on(backend, role))
    shared = [variant for store in stores for variant in variants if is_held_by(variant.weights, store)]
    chosen = (shared or variants)[0]
    batched = chosen.batched if backend is Backend.CUDA else ""
    return Choice(
        method_name, chosen, chosen.on(backend, role), next((each for each in variants if each.name == batched), None))


def _available(role: Role, backend: Backend, *, whole_worker: bool) -> str:
    """The methods that there are, with ``auto`` where a whole worker is chosen, and ``off`` for a drafter."""
    names = [
        method.name
        for method in METHODS.values()
        if any(variant.on(backend, role) is not Support.ABSENT for variant in method.variants)
    ]
    if whole_worker:
        names += [AUTO, NO_DRAFTER] if role is Role.DRAFT else [AUTO]
    return ", ".join(names)
