"""One interceptor that turns exceptions into statuses, for every method of every service.

Handlers of QSPEC's services are coroutines or asynchronous generators and simply raise; ``ErrorInterceptor`` wraps them
all, so that no servicer has an ``except`` of its own. A request that is no message is an error of its sender, too: left
to itself, gRPC answers that with UNKNOWN.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from qspec.errors import InvalidInput, QspecError
from qspec.log_format import frames_of
from qspec.rpc.errors import to_status

_log = logging.getLogger("qspec.rpc")


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Maps exceptions by ``qspec.rpc.errors``; what is no ``QspecError`` is logged with its traceback."""

    def __init__(self, *, public: bool = False) -> None:
        self._public = public

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call; the standard services (health, reflection) answer for themselves."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                wrapped = {kind: self._wrap(behaviour)}
                if kind.startswith("unary") and handler.request_deserializer is not None:
                    wrapped["request_deserializer"] = _reading(handler.request_deserializer)
                return handler._replace(**wrapped)
        raise TypeError(f"{handler_call_details.method} has no behaviour")

    def _wrap(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(behaviour):
            async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                try:
                    _refuse_unreadable(request)
                    async for response in behaviour(request, context):
                        yield response
                except grpc.aio.AbortError:
                    raise
                except Exception as error:  # noqa: BLE001  what this class is for
                    await self._abort(error, context)
            return stream

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                _refuse_unreadable(request)
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  what this class is for
                return await self._abort(error, context)
        return call

    async def _abort(self, error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if not isinstance(error, QspecError):
            if self._public:  # its text may quote a prompt
                _log.error("unexpected error in a handler: %s", frames_of(error))
            else:
                _log.error("unexpected error in a handler", exc_info=error)
        status = rpc_status.to_status(to_status(error, public=self._public))
        await context.abort(status.code, status.details, status.trailing_metadata)


class _Unreadable:
    """Stands for a request that is no message."""


def _reading(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A method's ``read``, for which bytes that it cannot read are ``_Unreadable``: only a behaviour can answer."""
    def read_or_note(content: bytes) -> Any:
        try:
            return read(content)
        except DecodeError:
            return _Unreadable()
    return read_or_note


def _refuse_unreadable(request: Any) -> None:
    if isinstance(request, _Unreadable):
        raise InvalidInput.field(
            "request", "is not a message of this call: it is damaged, or has a text that is no UTF-8")
