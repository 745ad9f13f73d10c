"""A light client of a QSPEC server: gRPC and the generated messages, no torch, no model.

``Client`` blocks, ``AsyncClient`` is for asyncio; both stream ``Delta`` objects::

    with Client("qspec.example:443", tls=Tls(), api_key=key) as client:
        for delta in client.generate("Why is the sky blue?", max_tokens=64):
            print(delta.text, end="")

Leaving the loop early and closing the iterator cancels on the server. Errors are ``QspecError``: ``InvalidInput`` has
the offending fields, ``QueueFull`` and ``Unavailable`` the time after which to ask again.
"""

from __future__ import annotations

from qspec.client.async_client import AsyncClient
from qspec.client.client import Client
from qspec.client.completion import Completion, collect
from qspec.client.deltas import Delta, Finish, FinishReason, Speculation, TokenLogprob, Usage
from qspec.client.request import GenerateOptions, Message
from qspec.client.retry import RetryPolicy
from qspec.client.tls import Tls
from qspec.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    QspecError,
    QueueFull,
    SlowReader,
    TlsFailed,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WorkerLost,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Delta",
    "FieldViolation",
    "Finish",
    "FinishReason",
    "GenerateOptions",
    "InvalidInput",
    "Message",
    "QspecError",
    "QueueFull",
    "RetryPolicy",
    "SlowReader",
    "Speculation",
    "Tls",
    "TlsFailed",
    "TokenLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Usage",
    "WorkerLost",
    "collect",
]
