"""What the verifiers of one server have to have in common, so that a text is the same wherever it runs.

The first verifier decides: model, methods and their kernels, the limits of a request, the vocabulary, and the layout of
the arena, whose fingerprint covers the model's files. One that differs is refused, be it that of another pair, or the
successor of one that was lost, in the middle of texts. For that reason also what ``auto`` stands for is found out once.
"""

from __future__ import annotations

import threading

from qspec.errors import FieldViolation, InvalidInput
from qspec.interfaces import VerifierDescription


class Agreement:
    """The verifier that all others have to be like; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: VerifierDescription | None = None

    @property
    def first(self) -> VerifierDescription | None:
        """The first verifier's description, once there was one."""
        return self._first

    def join(self, description: VerifierDescription) -> VerifierDescription:
        """The first verifier's description; ``InvalidInput`` naming everything in which this one differs from it."""
        with self._lock:
            if self._first is None:
                self._first = description
            first = self._first
        if violations := _differences(first, description):
            raise InvalidInput(*violations)
        return first


def _differences(first: VerifierDescription, other: VerifierDescription) -> list[FieldViolation]:
    if first.verify_quantization != other.verify_quantization:
        return [FieldViolation(
            "verify_quantization", f"the verifier has {other.verify_quantization}, and texts were begun as "
            f"{first.verify_quantization}; give it that method by name")]
    compared = {
        "model": (first.vocab_fingerprint, other.vocab_fingerprint, "vocabulary"),
        "verify_overrides": (first.method, other.method, "method"),
        "kernels": (first.kernel, other.kernel, "kernel"),
        "max_model_len": (first.max_model_len, other.max_model_len, "longest sequence"),
        "max_draft_length": (first.max_draft_length, other.max_draft_length, "longest draft"),
    }
    found = [
        FieldViolation(field, f"the verifier has another {what} than the server's first one{_shown(ours, theirs)}")
        for field, (ours, theirs, what) in compared.items()
        if ours != theirs
    ]
    if not found and first.arena.fingerprint != other.arena.fingerprint:
        found.append(FieldViolation(
            "model", "the verifier has another model than the server's first one, or other sizes; give all the same "
            "options"))
    return found


def _shown(ours: object, theirs: object) -> str:
    """Both values, where people can read them."""
    return f": {theirs}, not {ours}" if max(len(str(ours)), len(str(theirs))) < 64 else ""
