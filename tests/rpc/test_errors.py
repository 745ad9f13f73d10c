"""Exceptions become statuses and come back as what they were."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from grpc_status import rpc_status

from qspec.errors import (
    ContractViolation,
    DeadlineExceeded,
    EpochMismatch,
    FieldViolation,
    InvalidInput,
    ModelError,
    OutOfMemory,
    QspecError,
    QueueFull,
    SlowReader,
    Unavailable,
    WorkerLost,
)
from qspec.rpc.errors import from_rpc_error, to_status


class FailedCall(grpc.RpcError):
    """A call that failed with a status, as a client sees it."""

    def __init__(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        super().__init__()
        self._code, self._details, self._trailing_metadata = code, details, trailing_metadata

    def code(self) -> grpc.StatusCode:
        """Its code."""
        return self._code

    def details(self) -> str:
        """Its text."""
        return self._details

    def trailing_metadata(self) -> Any:
        """Its details."""
        return self._trailing_metadata


def failed(error: Exception, *, public: bool = False) -> FailedCall:
    """The call that fails with ``error``."""
    status = rpc_status.to_status(to_status(error, public=public))
    return FailedCall(status.code, status.details, status.trailing_metadata)


@pytest.mark.parametrize(("error", "code"), [
    (InvalidInput(FieldViolation("top_p", "too large"), FieldViolation("seed", "odd")), "INVALID_ARGUMENT"),
    (EpochMismatch("epoch 3, not 4"), "FAILED_PRECONDITION"),
    (ContractViolation("two leases"), "INVALID_ARGUMENT"),
    (OutOfMemory("needs 3 MiB\nweights  2 MiB\nKV blocks  1 MiB"), "RESOURCE_EXHAUSTED"),
    (WorkerLost("stopping"), "UNAVAILABLE"),
    (QueueFull("256 requests wait", 2.5), "RESOURCE_EXHAUSTED"),
    (SlowReader("1000 tokens behind"), "RESOURCE_EXHAUSTED"),
    (Unavailable("shutting down", 5.0), "UNAVAILABLE"),
    (DeadlineExceeded("after 3 tokens"), "DEADLINE_EXCEEDED"),
    (QspecError("something else"), "INTERNAL"),
])
def test_there_and_back(error: QspecError, code: str) -> None:
    call = failed(error)
    assert call.code().name == code
    back = from_rpc_error(call)
    assert type(back) is type(error)
    assert str(error) in str(back)
    if isinstance(error, InvalidInput):
        assert isinstance(back, InvalidInput)
        assert back.violations == error.violations


@pytest.mark.parametrize("error", [QueueFull("full", 2.5), QueueFull("full"), Unavailable("going", 0.001)])
def test_time_to_try_again_is_kept(error: QueueFull | Unavailable) -> None:
    back = from_rpc_error(failed(error))
    assert isinstance(back, type(error))
    assert back.retry_after_s == error.retry_after_s


def test_model_error_keeps_its_field() -> None:
    back = from_rpc_error(failed(ModelError("no such model")))
    assert isinstance(back, InvalidInput)
    assert back.violations == (FieldViolation("model", "no such model"),)


@pytest.mark.parametrize("error", [EpochMismatch("epoch"), ContractViolation("nonsense")])
def test_users_are_not_to_blame_for_the_workers(error: QspecError) -> None:
    assert failed(error, public=True).code() is grpc.StatusCode.INTERNAL


def test_bugs_tell_nothing_but_their_kind() -> None:
    call = failed(KeyError("secret"))
    assert call.code() is grpc.StatusCode.INTERNAL
    assert "KeyError" in call.details()
    assert "secret" not in call.details()


@pytest.mark.parametrize("code", [
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
])
def test_a_lost_connection_is_a_lost_worker(code: grpc.StatusCode) -> None:
    back = from_rpc_error(FailedCall(code, "gone\nsecond line"), "the drafter")
    assert isinstance(back, WorkerLost)
    assert str(back) == f"the drafter is gone or late: gone ({code.name})"


def test_contradictory_details_are_ignored() -> None:
    status = rpc_status.to_status(to_status(EpochMismatch("epoch")))
    back = from_rpc_error(FailedCall(grpc.StatusCode.UNAVAILABLE, "gone", status.trailing_metadata))
    assert isinstance(back, WorkerLost)


def metadata_size(call: FailedCall) -> int:
    """What gRPC counts of a status: names and values, the text's bytes escaped, details in base64."""
    values = [(name, value if isinstance(value, str) else base64.b64encode(value).decode())
              for name, value in call.trailing_metadata()]
    return sum(len(name) + len(value) + 32 for name, value in [*values, ("grpc-message", quote(call.details()))])


@pytest.mark.parametrize("error", [
    InvalidInput(*[FieldViolation(f"logit_bias[{index}].token_id", "999999999 is outside") for index in range(1024)]),
    InvalidInput(FieldViolation("regex", "é" * 10_000), FieldViolation("n", "too large")),
    InvalidInput(FieldViolation("x" * 10_000, "odd")),
    InvalidInput(*[FieldViolation("stop[1]", "\N{EURO SIGN}" * number) for number in range(100)]),
    QspecError("\n" * 100_000), QueueFull("x" * 100_000, 1.0),
], ids=lambda error: type(error).__name__)
def test_much_to_say_fits_into_a_status(error: QspecError) -> None:
    call = failed(error)
    assert metadata_size(call) < 8000
    back = from_rpc_error(call)
    assert type(back) is type(error)
    if isinstance(error, InvalidInput):
        assert isinstance(back, InvalidInput)
        for told, given in zip(back.violations, error.violations, strict=False):
            assert told.field[:20] == given.field[:20]
        left = len(error.violations) - len(back.violations)
        assert call.details().endswith(f"; and {left} more") == (left > 0)
