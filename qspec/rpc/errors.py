"""Exceptions to gRPC statuses and back: the only place that knows both.

A status carries ``google.rpc`` details beside its code: ``BadRequest`` names the offending fields of an
``InvalidInput``; ``ErrorInfo`` names the class of everything else that a client wants to tell apart (a wrong epoch from
a broken contract, a full queue from a slow reader); ``RetryInfo`` says when to try again, where that may help. What is
not a ``QspecError`` is a bug: the client learns no more than that there is one.

A status travels in the metadata behind an answer, of which gRPC takes 8 KiB, so what has much to say is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from qspec.errors import (
    ContractViolation,
    DeadlineExceeded,
    EpochMismatch,
    FieldViolation,
    InvalidInput,
    OutOfMemory,
    QspecError,
    QueueFull,
    SlowReader,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WorkerLost,
)

ERROR_DOMAIN = "qspec.v1"
"""``domain`` of every ``google.rpc.ErrorInfo`` that QSPEC sends."""

_MOST_TEXT = 3000
"""Longest text of a status as the wire has it; it is there twice, once in base64."""
_MOST_VIOLATIONS_TEXT = 1800
"""The same for violations, which are there a third time."""

_REASONS: dict[type[QspecError], tuple[str, grpc.StatusCode]] = {
    EpochMismatch: ("EPOCH_MISMATCH", grpc.StatusCode.FAILED_PRECONDITION),
    ContractViolation: ("CONTRACT_VIOLATION", grpc.StatusCode.INVALID_ARGUMENT),
    OutOfMemory: ("OUT_OF_MEMORY", grpc.StatusCode.RESOURCE_EXHAUSTED),
    WorkerLost: ("WORKER_LOST", grpc.StatusCode.UNAVAILABLE),
    QueueFull: ("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED),
    SlowReader: ("SLOW_READER", grpc.StatusCode.RESOURCE_EXHAUSTED),
    Unavailable: ("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE),
    DeadlineExceeded: ("DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED),
    Unauthenticated: ("UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED),
}
_CLASSES = {reason: error_class for error_class, (reason, _) in _REASONS.items()}
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def to_status(error: Exception, *, public: bool = False) -> status_pb2.Status:
    """The ``google.rpc.Status`` of an exception.

    ``public``: the service faces users, who are not to blame for what the workers think of each other; a
    ``ContractViolation`` or an ``EpochMismatch`` is then INTERNAL.
    """
    if isinstance(error, InvalidInput):
        told = _told_violations(error.violations)
        bad_request = error_details_pb2.BadRequest(field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.description)
            for violation in told
        ])
        more = len(error.violations) - len(told)
        text = f"{InvalidInput(*told)}; and {more} more" if more else str(InvalidInput(*told))
        return _status(grpc.StatusCode.INVALID_ARGUMENT, text, bad_request)
    for error_class, (reason, code) in _REASONS.items():
        if isinstance(error, error_class):
            if public and error_class in (EpochMismatch, ContractViolation):
                code = grpc.StatusCode.INTERNAL
            info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN)
            return _status(code, str(error), *_retry_info(error), info)
    if isinstance(error, QspecError):
        return _status(grpc.StatusCode.INTERNAL, str(error))
    return _status(grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__}); the server's log says more")


def from_rpc_error(error: grpc.RpcError, peer: str = "the server") -> QspecError:
    """The exception that a failed call stands for; ``peer`` is named in it where the status has no text of its own.

    Takes the errors of synchronous and asyncio calls. A fault of the server (INTERNAL, UNKNOWN) is a plain
    ``QspecError``.
    """
    code: grpc.StatusCode = error.code()
    text = (error.details() or code.name).strip()
    line = text.splitlines()[0]
    violations, reason, retry_after_s = _details_of(error)
    if violations:
        return InvalidInput(*violations)
    if reason == "QUEUE_FULL":
        return QueueFull(text, retry_after_s)
    if reason == "UNAVAILABLE":
        return Unavailable(text, retry_after_s)
    if reason in _CLASSES:
        return _CLASSES[reason](text)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"{peer} refuses the call: {line} ({code.name})")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unsupported(f"{peer} does not know this call: it is older than this client, or no QSPEC server ({line})")
    if code in _LOST:
        return WorkerLost(f"{peer} is gone or late: {line} ({code.name})")
    return QspecError(f"{peer} failed: {line} ({code.name})")


def _told_violations(violations: Sequence[FieldViolation]) -> list[FieldViolation]:
    """The first of them, as many as a status holds: one at least, cut to fit."""
    told: list[FieldViolation] = []
    left = _MOST_VIOLATIONS_TEXT
    for violation in violations:
        left -= _size(f"{violation.field}: {violation.description}; ")
        if left < 0 and told:
            break
        told.append(FieldViolation(violation.field[:100], _cut(violation.description, _MOST_VIOLATIONS_TEXT - 400)))
    return told


def _size(text: str) -> int:
    """Bytes of a text in a status: what is no visible ASCII becomes three for each of its bytes."""
    return sum(1 if " " <= character <= "~" else 3 * len(character.encode()) for character in text)


def _cut(text: str, most: int) -> str:
    """A text of at most ``most`` bytes in a status."""
    if _size(text) <= most:
        return text
    kept = text[:most]
    while _size(kept) > most - _size("…"):
        kept = kept[: len(kept) * 9 // 10]
    return f"{kept}…"


def _status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    message, packed = _cut(message, _MOST_TEXT), []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def _retry_info(error: QspecError) -> list[Message]:
    if not isinstance(error, (QueueFull, Unavailable)) or error.retry_after_s is None:
        return []
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _details_of(error: grpc.RpcError) -> tuple[list[FieldViolation], str, float | None]:
    """Field violations, the reason, and the seconds after which to try again, in a failed call's details.

    Empty where it carries none, or unreadable ones.
    """
    violations: list[FieldViolation] = []
    reason = ""
    retry_after_s: float | None = None
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # every failed call is both
    except (ValueError, DecodeError):  # details that contradict the call's own code and text: trust the latter
        status = None
    for detail in status.details if status is not None else ():
        bad_request, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            violations += [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return violations, reason, retry_after_s
