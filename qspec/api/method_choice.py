"""Which methods this machine has, which pair ``auto`` means, and what a pair can gain. Imports no torch."""

from __future__ import annotations

from qspec.api.pair_gain import PairGain
from qspec.config import StackConfig
from qspec.engine.backend import machine_backend
from qspec.errors import FieldViolation, InvalidInput
from qspec.quant.methods import (
    METHODS,
    NO_DRAFTER,
    Backend,
    Support,
    check_draft_method,
    check_verify_method,
    choose_draft,
    choose_verify,
)

AUTO = "auto"
"""The method that pays on this machine, for drafter or verifier."""


def backend_of(device: str) -> Backend:
    """This machine's backend for a device as torch names it (``cpu``, ``cpu:0``); ``InvalidInput`` lists what there is.
    """
    if device.partition(":")[0] != "cpu":
        raise InvalidInput.field("device", f"no kernels for {device!r}; choose one of: cpu")
    return machine_backend()


def resolve_pair(draft: str, verify: str, backend: Backend) -> tuple[str, str]:
    """Plain names for a pair of methods, ``auto`` resolved; ``InvalidInput`` names each that is not there."""
    draft = str(StackConfig.default_of("draft_quantization")) if draft == AUTO else str(draft)
    verify = str(StackConfig.default_of("verify_quantization")) if verify == AUTO else str(verify)
    violations: list[FieldViolation] = []
    for check, name in ((check_draft_method, draft), (check_verify_method, verify)):
        try:
            check(name, backend)
        except InvalidInput as error:
            violations += error.violations
    if violations:
        raise InvalidInput(*violations)
    return draft, verify


def can_draft(method: str, backend: Backend) -> bool:
    """Whether there is a kernel for drafting."""
    try:
        check_draft_method(method, backend)
    except InvalidInput:
        return False
    return method != NO_DRAFTER


def can_verify(method: str, backend: Backend) -> bool:
    """Whether there is a kernel for verifying."""
    try:
        check_verify_method(method, backend)
    except InvalidInput:
        return False
    return True


def check_method(method: str, backend: Backend) -> str:
    """The plain name of a method that drafts or verifies here; ``InvalidInput`` lists those that do."""
    method = str(StackConfig.default_of("verify_quantization")) if method == AUTO else str(method)
    if can_draft(method, backend) or can_verify(method, backend):
        return method
    there = [name for name in METHODS if can_draft(name, backend) or can_verify(name, backend)]
    problem = f"{method} has no kernel on {backend.value}" if method in METHODS else f"unknown method {method!r}"
    raise InvalidInput.field("quantization_method", f"{problem}; choose one of: {', '.join(there)}")


def is_best_pair(draft: str, verify: str, backend: Backend) -> bool:
    """Whether plain names of methods are the pair that ``auto`` means."""
    return (draft, verify) == resolve_pair(AUTO, AUTO, backend)


def describe_gain(draft: str, verify: str, backend: Backend, gain: PairGain | None = None) -> str | None:
    """One line for people about a pair that is not the best on this machine, with the one that is.

    None for the best pair, and where neither the methods nor a predicted ``gain`` say anything. Decoding one text is
    bound by the bytes that a pass reads, so a drafter pays only if it reads fewer.
    """
    if is_best_pair(draft, verify, backend):
        return None
    verifier = choose_verify(verify, backend)
    drafter = choose_draft(draft, backend, verify=verifier)
    if drafter is None:
        return None
    drafted, verified = drafter.variant.bits_per_weight, verifier.variant.bits_per_weight
    emulated = [
        name for name, choice in ((draft, drafter), (verify, verifier)) if choice.support is Support.EMULATED
    ]
    said = [] if gain is None else [_prediction(gain, verify)]
    if emulated:
        verb = "is" if len(emulated) == 1 else "are"
        said.append(f"{' and '.join(emulated)} {verb} emulated on {backend.value}, with the right numbers and no gain")
    if drafted >= verified:
        said.append(
            f"a draft step reads {drafted:g} bits per weight and a verify pass {verified:g}, so drafting gains nothing")
    if not said:
        return None
    better_draft, better_verify = resolve_pair(AUTO, AUTO, backend)
    return f"{draft} -> {verify}: {'; '.join(said)}; {better_draft} -> {better_verify} gains more here"


def _prediction(gain: PairGain, verify: str) -> str:
    """A predicted gain, with what it rests on."""
    return (
        f"predicted {gain.speed_up:.2f} times plain {verify} ({gain.plain_rate:.3g} -> "
        f"{gain.plain_rate * gain.speed_up:.3g} tokens/s) at draft length {gain.draft_length}, from a draft step of "
        f"{gain.c:.2f} and a verify pass of {gain.v:.2f} plain steps, timed now, and an assumed acceptance of "
        f"{gain.acceptance:g}"
    )
