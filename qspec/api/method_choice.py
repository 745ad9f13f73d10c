"""Which methods this machine has, and what a pair of them can gain. Imports no torch."""

from __future__ import annotations

from qspec.engine.backend import machine_backend
from qspec.errors import FieldViolation, InvalidInput
from qspec.pair_choice import Kind, kind
from qspec.pair_gain import PairGain
from qspec.quant.methods import (
    AUTO,
    METHODS,
    NO_DRAFTER,
    Backend,
    Support,
    check_draft_method,
    check_verify_method,
    choose_draft,
    choose_verify,
)

_UNQUANTISED = "none"


def backend_of(device: str) -> Backend:
    """This machine's backend for a device as torch names it (``cpu``, ``cpu:0``); ``InvalidInput`` lists what there is.
    """
    if device.partition(":")[0] != "cpu":
        raise InvalidInput.field("device", f"no kernels for {device!r}; choose one of: cpu")
    return machine_backend()


def check_pair(draft: str, verify: str, backend: Backend) -> None:
    """``InvalidInput`` naming each method of a pair that is not there; ``auto`` is."""
    violations: list[FieldViolation] = []
    for check, name in ((check_draft_method, draft), (check_verify_method, verify)):
        try:
            check(str(name), backend)
        except InvalidInput as error:
            violations += error.violations
    if violations:
        raise InvalidInput(*violations)


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
    """The plain name of a method that drafts or verifies here, for ``auto`` the unquantised one; ``InvalidInput`` lists
    those that do.
    """
    method = _UNQUANTISED if method == AUTO else str(method)
    if can_draft(method, backend) or can_verify(method, backend):
        return method
    there = [name for name in METHODS if can_draft(name, backend) or can_verify(name, backend)]
    problem = f"{method} has no kernel on {backend.value}" if method in METHODS else f"unknown method {method!r}"
    raise InvalidInput.field("quantization_method", f"{problem}; choose one of: {', '.join(there)}")


def computes_alike(pair: tuple[str, str], other: tuple[str, str], backend: Backend) -> bool:
    """Whether drafters and verifiers of two pairs of methods compute the same, however they were written."""
    return _kinds(*pair, backend) == _kinds(*other, backend)


def describe_gain(
    draft: str, verify: str, backend: Backend, best: tuple[str, str], gain: PairGain | None = None
) -> str | None:
    """One line for people about a pair, with the ``best`` one on this machine (``qspec.pair_choice``).

    None for the best pair, and where neither the methods nor a predicted ``gain`` say anything. Decoding one text is
    bound by the bytes that a pass reads, so a drafter pays only if it reads fewer.
    """
    if computes_alike((draft, verify), best, backend):
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
    return f"{draft} -> {verify}: {'; '.join(said)}; {best[0]} -> {best[1]} gains more here"


def _kinds(draft: str, verify: str, backend: Backend) -> tuple[Kind | None, Kind]:
    """What drafter and verifier of a pair compute."""
    verifier = choose_verify(verify, backend)
    drafter = choose_draft(draft, backend, verify=verifier)
    return None if drafter is None else kind(drafter), kind(verifier)


def _prediction(gain: PairGain, verify: str) -> str:
    """A predicted gain, with what it rests on."""
    return (
        f"predicted {gain.speed_up:.2f} times plain {verify} ({gain.plain_rate:.3g} -> "
        f"{gain.plain_rate * gain.speed_up:.3g} tokens/s) at draft length {gain.draft_length}, from a draft step of "
        f"{gain.c:.2f} and a verify pass of {gain.v:.2f} plain steps, timed now, and an assumed acceptance of "
        f"{gain.acceptance:g}"
    )
